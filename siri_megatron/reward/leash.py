"""LEASH: a length penalty whose weight is a Lagrange multiplier, steered to a target length. No I/O.

    r' = clip(r - lambda max(0, |y|/L_t - 1), -1, 1)
    after each step: lambda <- clip(lambda + rate (mean |y|/L_t - 1), lowest, highest)

Source: Leash, arXiv 2512.21540 (one-sided penalised reward, dual update). The numbers of rate and bounds are ours. L_t
is a number of tokens as in the paper, or a share of the stamped cap of each row: then the rule asks for the same
relative length all through a cycle, and a cap that falls below the target does not switch the rule off.

Invariants:
- one_sided: a response no longer than its target keeps its reward (within [-1, 1]).
- falls_with_length: beyond the target the reward never rises with the length.
- bounded: -1 <= r' <= 1; lowest <= lambda <= highest.
- steers: lambda rises after a step that was longer than the target on average, and falls after a shorter one.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from siri_megatron.budget.step_budget import StepBudget
from siri_megatron.config import LeashConfig
from siri_megatron.reward.length_rule import LengthRule, RuleRows


class Leash(LengthRule):
    def __init__(self, config: LeashConfig) -> None:
        self._config = config
        self._weight = config.start

    def shape(self, rows: RuleRows, reward: NDArray[np.float64], budget: StepBudget) -> NDArray[np.float64]:
        return penalised(reward, relative_length(rows, self._config), self._weight)

    def observe(self, rows: RuleRows) -> None:
        self._weight = next_weight(self._weight, relative_length(rows, self._config), self._config)

    def figures(self) -> dict[str, float | None]:
        return {"leash_lambda": self._weight}

    def state(self) -> dict[str, Any]:
        return {"lambda": self._weight}

    def restore(self, state: Mapping[str, Any]) -> None:
        self._weight = float(state["lambda"])


def relative_length(rows: RuleRows, config: LeashConfig) -> NDArray[np.float64]:
    """[n] |y|/L_t."""
    target = config.target_tokens if config.target_share is None else config.target_share * rows.cap
    return np.asarray(rows.length / np.asarray(target, np.float64))


def penalised(reward: NDArray[np.float64], relative: NDArray[np.float64], weight: float) -> NDArray[np.float64]:
    """clip(r - lambda max(0, |y|/L_t - 1), -1, 1); NaN stays NaN."""
    return np.clip(reward - weight * np.maximum(0.0, relative - 1), -1.0, 1.0)


def next_weight(weight: float, relative: NDArray[np.float64], config: LeashConfig) -> float:
    """lambda after a step: every response counts, whatever its verdict. Without responses it stays."""
    if not len(relative):
        return weight
    return float(np.clip(weight + config.rate * (relative.mean() - 1), config.lowest, config.highest))
