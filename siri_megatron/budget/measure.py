"""What the closed loop remembers of a step, and how it pools steps.

A step's figures are noisy: 128 samples at 40% accuracy have a standard error of 4 points. A decision therefore looks at
the samples of the last `closed.window` steps as if they were one step: shares are weighted by the samples that they are
shares of.

Invariants:
- pooling_is_counting: the pooled figures are those of all samples thrown together.
- above_the_cap_is_the_cap: a budget above a step's cap gives its figures at the cap; between two budgets of the grid
  nothing is known, and nothing is asked.
- no_verdict_no_measure: a step without verdicts is no measure.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from siri_megatron.budget.signal import StepSignal


class Figures(NamedTuple):
    """Shares in [0, 1] over samples whose responses are clipped to one budget."""

    accuracy: float
    """J(B): right ones among all."""
    truncated: float
    """Those that do not end within the budget."""
    accuracy_untruncated: float
    """Right ones among those that end; 0 if none does."""


@dataclass(frozen=True)
class Measure:
    """One consumed step."""

    cap: int
    samples: int
    at: Mapping[int, Figures]
    """Budget -> figures, for the cap and every budget of the grid below it."""

    @classmethod
    def of(cls, cap: int, metrics: Mapping[str, Any]) -> Measure | None:
        """From a step's metrics (`rollout.stats.step_stats`); None if there was no verdict on it."""
        below = [int(budget) for budget in metrics["budget_accuracy"] if int(budget) < cap]
        names = ("budget_accuracy", "budget_truncated", "budget_accuracy_untruncated")
        at = {budget: [metrics[name][str(budget)] for name in names] for budget in below}
        at[cap] = [metrics["accuracy"], metrics["truncated"], metrics["accuracy_untruncated"]]
        if any(accuracy is None for accuracy, _, _ in at.values()):
            return None
        return cls(cap, metrics["samples"], {budget: Figures(j, cut, ended or 0.0)
                                             for budget, (j, cut, ended) in sorted(at.items())})

    def figures(self, budget: int) -> Figures:
        return self.at[min(budget, self.cap)]

    def to_json(self) -> dict[str, Any]:
        return {"cap": self.cap, "samples": self.samples,
                "at": {str(budget): list(shares) for budget, shares in self.at.items()}}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Measure:
        return cls(data["cap"], data["samples"], {int(at): Figures(*shares) for at, shares in data["at"].items()})


def starved(metrics: Mapping[str, Any]) -> bool:
    """Nothing could be learnt from the step, and a shorter cap would not help; a step without verdicts counts."""
    return StepSignal.of(metrics).starved or metrics["accuracy"] is None


def pool(measures: Sequence[Measure], budget: int) -> Figures:
    """The figures of all samples of some steps (at least one) at a budget."""
    shares = [(measure.samples, measure.figures(budget)) for measure in measures]
    ending = [(samples * (1 - at.truncated), at.accuracy_untruncated) for samples, at in shares]
    return Figures(_mean((samples, at.accuracy) for samples, at in shares),
                   _mean((samples, at.truncated) for samples, at in shares), _mean(ending))


def _mean(weighted: Iterable[tuple[float, float]]) -> float:
    pairs = list(weighted)
    total = math.fsum(weight for weight, _ in pairs)
    return math.fsum(weight * value for weight, value in pairs) / total if total else 0.0
