"""The zero-signal guard: says loudly when a step cannot teach anything.

A very small cap makes every reward zero without any error (trl#5697, trl#6219), and a solved task does the same from
the other side. The caller turns the message into an event and a progress line.

Invariants:
- silent_when_healthy: None while every share is under its threshold.
- silent_where_something_is_learnt: groups that are all right are no reason while their rewards, as a length rule shapes
  them, differ. All-wrong ones are: what differs there teaches length alone.
- filled_is_no_reason: groups of equal rewards are none either where dynamic sampling has put others in their place;
  where it could not, that is said by its own name.
- truncation_named_first: a truncated batch is also an all-wrong one; the message names the cause, not the effect.
- shares_checked: a share outside of [0, 1] is refused, since it would silence the guard.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from siri_megatron.budget.step_budget import StepBudget

TRUNCATED = 0.95
"""Share of truncated samples from which the cap is called too short."""
UNIFORM = 0.95
"""Share of groups with equal rewards from which a step is called without signal."""


@dataclass(frozen=True)
class StepSignal:
    """Shares in [0, 1] over one rollout step."""

    all_wrong: float
    """Groups in which every reward is 0."""
    all_right: float
    """Groups in which every reward is 1."""
    truncated: float
    """Samples without a stop token within the cap."""
    uniform: float
    """Groups whose rewards, as they make the advantages, are all equal; of a step with refills, those that it lacks."""

    @classmethod
    def of(cls, metrics: Mapping[str, Any]) -> StepSignal:
        """From a step's metrics. Where nothing is trained nothing is shaped: the verdicts are the rewards."""
        wrong, right = metrics["all_wrong_groups"], metrics["all_right_groups"]
        uniform = metrics.get("uniform_groups", min(1.0, wrong + right))
        return cls(wrong, right, metrics["truncated"], metrics.get("unfilled", uniform))

    @property
    def starved(self) -> bool:
        """Nothing right to learn from: the cap is too short or the problems too hard, and a shorter cap is no help."""
        return self.truncated >= TRUNCATED or self.all_wrong >= UNIFORM

    def __post_init__(self) -> None:
        for name, share in vars(self).items():
            if not 0 <= share <= 1:
                raise ValueError(f"{name}={share} is not a share in [0, 1]")


def zero_signal(signal: StepSignal, budget: StepBudget) -> str | None:
    """A one-line warning when nearly nothing can be learnt from the step, else None."""
    where = f"at step {budget.step}"
    if signal.truncated >= TRUNCATED:
        return f"{signal.truncated:.0%} truncated {where}: the cap {budget.cap} is too short"
    if signal.all_wrong >= UNIFORM:
        return (f"{signal.all_wrong:.0%} of the groups are all wrong {where} (cap {budget.cap}): nothing right to "
                "learn from; check the prompt template and the answer scope, or take easier problems")
    if signal.uniform < UNIFORM:
        return None
    if signal.all_right >= UNIFORM:
        return f"{signal.all_right:.0%} of the groups are all right {where}: no gradient; take harder problems"
    if signal.all_wrong + signal.all_right >= UNIFORM:
        return (f"{signal.all_wrong:.0%} of the groups are all wrong and {signal.all_right:.0%} all right {where}: "
                "nearly no gradient; raise rollout.samples_per_prompt or take problems of middling difficulty")
    return (f"{signal.uniform:.0%} of the groups have equal rewards, or none, {where}: no gradient; see accuracy, "
            "truncated and failed_verifications, and whether the reward tells responses apart")


def short_step(metrics: Mapping[str, Any], budget: StepBudget) -> str | None:
    """A one-line warning when dynamic sampling did not find as many groups with a signal as a step trains on."""
    if not metrics.get("unfilled"):
        return None
    return (f"{metrics['unfilled']:.0%} of the groups are missing at step {budget.step} after "
            f"{metrics['refill_groups']} refills: trained on the others; raise rollout.max_refill, or take problems of "
            "middling difficulty")
