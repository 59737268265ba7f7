from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rule_rows import budget, rows_of, tables

from siri_megatron.config import ProrlConfig
from siri_megatron.reward.prorl import Prorl, cosine_length_reward, is_on


def test_formula():
    """eta_min + 0.5 (eta_max - eta_min)(1 + cos(pi t/T)) at quarters of T = 80, with bounds -0.5 and 0.25."""
    by_hand = [0.25, -0.125 + 0.375 / math.sqrt(2), -0.125, -0.125 - 0.375 / math.sqrt(2), -0.5]
    assert cosine_length_reward([0, 20, 40, 60, 80], [80] * 5, -0.5, 0.25) == pytest.approx(by_hand)


def test_each_row_has_its_own_context():
    assert cosine_length_reward([20, 20, 20], [20, 40, 80], -1, 0) == pytest.approx(
        [-1, -0.5, -0.5 + 0.5 / math.sqrt(2)])


def test_added_to_right_and_wrong_alike():
    rows = rows_of([(32, 64, 0, 1.0), (32, 64, 0, 0.0), (64, 64, 0, 1.0)])
    assert Prorl(ProrlConfig()).shape(rows, rows.verdict, budget()) == pytest.approx([0.75, -0.25, 0.5])


@given(tables, st.floats(-2, 0), st.floats(0.01, 2))
def test_bounded(table, lowest, spread):
    rows = rows_of(table)
    added = cosine_length_reward(rows.length, rows.cap, lowest, lowest + spread)
    assert np.all((added >= lowest - 1e-12) & (added <= lowest + spread + 1e-12))


@given(st.integers(2, 500))
def test_falls_with_length(cap):
    added = cosine_length_reward(np.arange(0, cap + 1), [cap] * (cap + 1), -0.5, 0)
    assert np.all(np.diff(added) <= 0)
    assert (added[0], added[-1]) == pytest.approx((0, -0.5))


def test_on_for_100_off_for_500():
    on = [step for step in range(1300) if is_on(ProrlConfig(), budget(step))]
    assert on == [*range(100), *range(600, 700), *range(1200, 1300)]


def test_on_in_one_kind_of_phase():
    config = ProrlConfig(on="expansion")
    assert [is_on(config, budget(7, phase)) for phase in ("compression", "expansion")] == [False, True]


@given(tables)
def test_off_is_nothing(table):
    rows = rows_of(table)
    np.testing.assert_array_equal(Prorl(ProrlConfig()).shape(rows, rows.verdict, budget(100)), rows.verdict)


def test_negative_control_on_is_something():
    rows = rows_of([(32, 64, 0, 1.0)])
    assert Prorl(ProrlConfig()).shape(rows, rows.verdict, budget(99))[0] != rows.verdict[0]
