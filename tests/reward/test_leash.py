from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rule_rows import NAN, budget, rows_of, tables

from siri_megatron.config import LeashConfig
from siri_megatron.reward.leash import Leash, next_weight, penalised, relative_length

TOKENS = LeashConfig(target_tokens=20, start=0.5, rate=0.1, lowest=0.05, highest=0.8)
SHARE = LeashConfig(target_share=0.5, start=0.5)


def plain(length, target, reward, weight):
    """The paper's penalised reward, one response at a time."""
    excess = length / target - 1
    penalised = reward - weight * excess if excess > 0 else reward
    return -1.0 if penalised < -1 else 1.0 if penalised > 1 else penalised


def test_reward_by_hand():
    """L_t = 20, lambda = 0.5: 30 tokens cost 0.25, 60 cost 1, 100 would cost 2."""
    rows = rows_of([(20, 200, 0, 1), (30, 200, 0, 1), (60, 200, 0, 1), (60, 200, 0, 0), (100, 200, 0, 0),
                    (5, 200, 0, NAN)])
    assert Leash(TOKENS).shape(rows, rows.verdict, budget()) == pytest.approx([1, 0.75, 0, -1, -1, NAN], nan_ok=True)


def test_lambda_by_hand():
    """0.5 + 0.1 (mean/20 - 1): mean 40 gives 0.6, mean 10 gives 0.45; kept within 0.05 .. 0.8."""
    assert next_weight(0.5, np.array([30, 50]) / 20, TOKENS) == pytest.approx(0.6)
    assert next_weight(0.5, np.array([10, 10]) / 20, TOKENS) == pytest.approx(0.45)
    assert next_weight(0.75, np.array([100]) / 20, TOKENS) == 0.8
    assert next_weight(0.06, np.array([1]) / 20, TOKENS) == 0.05


def test_lambda_over_steps():
    """A step is shaped with the weight of before it; every response counts, whatever its verdict."""
    rule, rows = Leash(TOKENS), rows_of([(30, 200, 0, 1), (50, 200, 0, NAN)])
    seen = []
    for _ in range(4):
        seen.append(rule.figures()["leash_lambda"])
        assert rule.shape(rows, rows.verdict, budget())[0] == pytest.approx(1 - seen[-1] * 0.5)
        rule.observe(rows)
    assert seen == pytest.approx([0.5, 0.6, 0.7, 0.8])


def test_a_share_follows_each_rows_cap():
    rows = rows_of([(30, 40, 0, 1), (30, 60, 0, 1), (30, 120, 0, 1)])
    assert relative_length(rows, SHARE) == pytest.approx([1.5, 1, 0.5])
    assert Leash(SHARE).shape(rows, rows.verdict, budget()) == pytest.approx([0.75, 1, 1])


@given(tables, st.floats(0, 3), st.sampled_from([TOKENS, SHARE]))
def test_formula(table, weight, config):
    rows = rows_of(table)
    expected = [plain(length, config.target_tokens or config.target_share * cap, verdict, weight)
                for length, cap, _, verdict in table]
    assert penalised(rows.verdict, relative_length(rows, config), weight).tolist() == pytest.approx(
        expected, nan_ok=True)


@given(tables, st.floats(0, 3))
def test_one_sided(table, weight):
    rows = rows_of(table)
    relative = relative_length(rows, TOKENS)
    within = relative <= 1
    np.testing.assert_array_equal(penalised(rows.verdict, relative, weight)[within], rows.verdict[within])


@given(st.lists(tables, max_size=8))
def test_bounded(steps):
    rule = Leash(TOKENS)
    for table in steps:
        rows = rows_of(table)
        reward = rule.shape(rows, rows.verdict, budget())
        assert np.all(np.isnan(reward) | ((reward >= -1) & (reward <= 1)))
        rule.observe(rows)
        assert TOKENS.lowest <= rule.figures()["leash_lambda"] <= TOKENS.highest


@given(st.lists(st.integers(1, 100), min_size=1), st.floats(0.05, 0.8))
def test_steers(lengths, weight):
    after = next_weight(weight, np.array(lengths) / 20, TOKENS)
    mean = sum(lengths) / len(lengths)
    assert after >= weight - 1e-12 if mean >= 20 else after <= weight + 1e-12


def test_negative_control_a_two_sided_penalty_would_pay_short_answers():
    rows = rows_of([(10, 200, 0, 0.0)])
    two_sided = rows.verdict - 0.5 * (rows.length / 20 - 1)
    assert two_sided[0] == 0.25
    assert Leash(TOKENS).shape(rows, rows.verdict, budget())[0] == 0
