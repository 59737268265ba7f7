from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from siri_megatron.budget.measure import starved
from siri_megatron.budget.signal import TRUNCATED, UNIFORM, StepSignal, short_step, zero_signal
from siri_megatron.budget.step_budget import StepBudget

BUDGET = StepBudget(40, 1, "compression", 48, 12)


@given(st.floats(0, UNIFORM, exclude_max=True), st.floats(0, 1), st.floats(0, TRUNCATED, exclude_max=True))
def test_silent_when_healthy(uniform, split, truncated):
    signal = StepSignal(uniform * split * 0.999, uniform * (1 - split) * 0.999, truncated, uniform)
    assert zero_signal(signal, BUDGET) is None


@given(st.floats(0, UNIFORM, exclude_max=True), st.floats(0, 1), st.floats(0, UNIFORM, exclude_max=True))
def test_silent_where_something_is_learnt(wrong, split, uniform):
    signal = StepSignal(wrong, split * (1 - wrong), 0.0, uniform)
    assert zero_signal(signal, BUDGET) is None


def test_truncation_named_first():
    message = zero_signal(StepSignal(all_wrong=1, all_right=0, truncated=0.97, uniform=1), BUDGET)
    assert message == "97% truncated at step 40: the cap 48 is too short"


@pytest.mark.parametrize(("wrong", "right", "words"), [
    (1.0, 0.0, "100% of the groups are all wrong at step 40"), (0.0, 0.96, "96% of the groups are all right"),
    (0.5, 0.48, "50% of the groups are all wrong and 48% all right"),
])
def test_uniform_groups(wrong, right, words):
    assert words in (zero_signal(StepSignal(wrong, right, 0.1, wrong + right), BUDGET) or "")


def test_a_length_rule_makes_a_signal_of_all_right_groups():
    """The same verdicts, with rewards that differ, and that do not; all-wrong groups teach length alone."""
    assert zero_signal(StepSignal(0, 1, 0.1, uniform=0.5), BUDGET) is None
    assert "all right at step 40: no gradient" in (zero_signal(StepSignal(0, 1, 0.1, uniform=0.95), BUDGET) or "")
    assert "nothing right to learn from" in (zero_signal(StepSignal(1, 0, 0.1, uniform=0), BUDGET) or "")


def test_equal_rewards_that_are_neither_right_nor_wrong():
    """Partial rewards of a custom verifier, or groups of which one sample is left."""
    assert "96% of the groups have equal rewards" in (zero_signal(StepSignal(0.1, 0.1, 0.1, 0.96), BUDGET) or "")


def test_without_a_plan_the_verdicts_are_the_rewards():
    metrics = {"all_wrong_groups": 0.3, "all_right_groups": 0.7, "truncated": 0.1}
    assert StepSignal.of(metrics) == StepSignal(0.3, 0.7, 0.1, 1.0)
    assert StepSignal.of(metrics | {"uniform_groups": 0.2}) == StepSignal(0.3, 0.7, 0.1, 0.2)


def test_filled_is_no_reason():
    """All own groups are right and refills were found; none was found, which has a name of its own; half were."""
    metrics = {"all_wrong_groups": 0.0, "all_right_groups": 1.0, "truncated": 0.1, "uniform_groups": 1.0,
               "accuracy": 1.0, "refill_groups": 32}
    said = [(zero_signal(StepSignal.of(step), BUDGET), short_step(step, BUDGET))
            for step in (metrics | {"unfilled": share} for share in (0.0, 0.5, 1.0))]
    assert said[0] == (None, None)
    assert said[1][0] is None
    assert said[1][1].startswith("50% of the groups are missing at step 40 after 32 refills: trained on the others")
    assert "all right at step 40: no gradient" in said[2][0]
    assert said[2][1].startswith("100% of the groups are missing")
    assert "all right" in zero_signal(StepSignal.of(metrics), BUDGET)  # negative control: without refills
    assert short_step(metrics, BUDGET) is None


def test_a_closed_loop_holds_though_refills_were_found():
    """What the step's own prompts say counts: a cap at which nearly all fail is too short, or they are too hard."""
    metrics = {"all_wrong_groups": 0.96, "all_right_groups": 0.0, "truncated": 0.1, "uniform_groups": 0.96,
               "accuracy": 0.01, "unfilled": 0.0}
    assert starved(metrics)
    assert "nothing right to learn from" in zero_signal(StepSignal.of(metrics), BUDGET)
    assert not starved(metrics | {"all_wrong_groups": 0.5})


@pytest.mark.parametrize("share", [-0.1, 1.5, float("nan"), 97])
def test_shares_checked(share):
    with pytest.raises(ValueError, match="is not a share"):
        StepSignal(0, 0, 0, share)
