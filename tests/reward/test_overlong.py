"""What becomes of truncated samples, row by row, up to the advantages and token weights of the plan."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from siri_megatron.batching.lengths import RowLengths
from siri_megatron.batching.plan import StepPlan, plan_step
from siri_megatron.budget.method import Method
from siri_megatron.budget.step_budget import StepBudget
from siri_megatron.config import AlgorithmConfig, BatchingConfig, OptimizerConfig, Overlong
from siri_megatron.reward.overlong import shaped

CAP = 40
NAN = math.nan
rows = st.lists(st.tuples(st.sampled_from([0.0, 1.0, NAN]), st.integers(1, CAP)), min_size=1, max_size=20)


def shape(rule: Overlong, given_rows: list[tuple[float, int]], buffer: float = 0.25) -> tuple[np.ndarray, list[bool]]:
    """Rewards after the rule; a response of CAP tokens is a truncated one."""
    rewards, lengths = zip(*given_rows, strict=True)
    truncated = [length == CAP for length in lengths]
    return shaped(rule, rewards, lengths, truncated, cap=CAP, buffer=buffer), truncated


@pytest.mark.parametrize("rule", ["zero", "forced"])
@given(rows)
def test_zero_changes_nothing(rule: Overlong, given_rows: list[tuple[float, int]]) -> None:
    np.testing.assert_array_equal(shape(rule, given_rows)[0], [reward for reward, _ in given_rows])


@given(rows)
def test_masked_has_no_verdict(given_rows: list[tuple[float, int]]) -> None:
    found, truncated = shape("mask", given_rows)
    np.testing.assert_array_equal(found, [NAN if cut else reward
                                          for (reward, _), cut in zip(given_rows, truncated, strict=True)])


@given(rows, st.floats(0.05, 1))
def test_soft_adds_the_ramp(given_rows: list[tuple[float, int]], buffer: float) -> None:
    """DAPO eq. 13 written out: free up to (1 - buffer) cap, then down to -1 at the cap."""
    wanted = [reward + min(0.0, max(-1.0, (CAP - buffer * CAP - length) / (buffer * CAP)))
              for reward, length in given_rows]
    np.testing.assert_allclose(shape("soft", given_rows, buffer)[0], wanted, atol=1e-12)


@pytest.mark.parametrize("rule", ["zero", "mask", "soft", "forced"])
@given(rows)
def test_failures_stay(rule: Overlong, given_rows: list[tuple[float, int]]) -> None:
    found, _ = shape(rule, given_rows)
    assert all(math.isnan(one) for one, (reward, _) in zip(found, given_rows, strict=True) if math.isnan(reward))


GROUP = [(1.0, 10), (0.0, 20), (0.0, CAP), (1.0, 38)]
"""Right, wrong, truncated, right within the buffer."""


def plan(rule: Overlong, group: list[tuple[float, int]], **algorithm: Any) -> StepPlan:
    chosen = AlgorithmConfig(mini_batches=1, **algorithm)
    lengths = np.array([length for _, length in group])
    count = len(group)
    table = RowLengths(np.full(count, 3), lengths, np.zeros(count, int), shape(rule, group)[0])
    return plan_step(table, StepBudget(0, 0, "compression", CAP, 1), chosen, BatchingConfig(),
                     method=Method.of(chosen, OptimizerConfig(lr=1e-3), rule), dp=1, multiple=1, l_max=CAP,
                     max_prompt=8)


def test_a_truncated_sample_is_a_wrong_one_and_stays() -> None:
    planned = plan("zero", GROUP, advantage="group_mean")
    assert planned.advantages == pytest.approx((0.5, -0.5, -0.5, 0.5))
    assert planned.token_weights == pytest.approx([1 / (4 * length) for _, length in GROUP])


@pytest.mark.parametrize(("loss", "weights"), [
    ("grpo", [1 / 30, 1 / 60, 0, 1 / 114]), ("dapo", [1 / 68, 1 / 68, 0, 1 / 68]),
    ("dr_grpo", [1 / 120, 1 / 120, 0, 1 / 120])])
def test_a_masked_sample_leaves_mean_loss_and_denominator(loss: str, weights: list[float]) -> None:
    """As if it had never been sampled: the mean is 2/3, three samples and 68 tokens are left."""
    planned = plan("mask", GROUP, advantage="group_mean", loss=loss)
    assert planned.advantages == pytest.approx((1 / 3, -2 / 3, 0, 1 / 3))
    assert planned.token_weights == pytest.approx(weights)
    assert sorted(row for micro in planned.micro_batches() for row in micro.rows) == [0, 1, 3]


def test_a_soft_punishment_moves_the_mean() -> None:
    """Lengths 10, 20, 40, 38 of 40 with a buffer of 10: penalties 0, 0, -1, -0.8."""
    shaped_rewards = [1.0, 0.0, -1.0, 0.2]
    planned = plan("soft", GROUP, advantage="group_mean")
    assert planned.advantages == pytest.approx([one - np.mean(shaped_rewards) for one in shaped_rewards])


def test_with_a_soft_punishment_an_all_wrong_group_has_a_signal() -> None:
    group = [(0.0, 10), (0.0, CAP)]
    assert plan("zero", group).dropped_groups == 1
    assert plan("soft", group).dropped_groups == 0


def test_masking_can_leave_a_group_without_signal() -> None:
    group = [(1.0, 10), (0.0, CAP)]
    assert plan("zero", group).dropped_groups == 0
    assert plan("mask", group).dropped_groups == 1
