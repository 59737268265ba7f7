"""ProRL v2's scheduled cosine length reward: on for some steps, off for others. Pure.

Source: Hu et al., "ProRL V2" (August 2025), section "Scheduled Cosine Length Penalty":
    R' = R + weight x (eta_min + (eta_max - eta_min)/2 (1 + cos(pi t/T))), t tokens of T, "100 updates on, 500 off".
The post gives neither weight nor bounds: here the weight is in the bounds, and their values are ours. T is the stamped
cap of the row. An update is a training step here. Source of the cosine: arXiv 2502.03373.

Invariants:
- bounded: what is added lies in lowest .. highest, highest at no tokens, lowest at the cap.
- falls_with_length: it never rises with the length.
- off_is_nothing: while the rule is off, the rewards are what they were.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from siri_megatron.budget.step_budget import StepBudget
from siri_megatron.config import ProrlConfig
from siri_megatron.reward.length_rule import LengthRule, RuleRows


class Prorl(LengthRule):
    def __init__(self, config: ProrlConfig) -> None:
        self._config = config

    def shape(self, rows: RuleRows, reward: NDArray[np.float64], budget: StepBudget) -> NDArray[np.float64]:
        if not is_on(self._config, budget):
            return reward
        return reward + cosine_length_reward(rows.length, rows.cap, self._config.lowest, self._config.highest)


def cosine_length_reward(length: ArrayLike, cap: ArrayLike, lowest: float, highest: float) -> NDArray[np.float64]:
    """lowest + (highest - lowest)/2 (1 + cos(pi |y|/L)). length, cap: [n], length <= cap."""
    share = np.minimum(np.asarray(length, np.float64) / np.asarray(cap, np.float64), 1.0)
    return np.asarray(lowest + (highest - lowest) / 2 * (1 + np.cos(np.pi * share)))


def is_on(config: ProrlConfig, budget: StepBudget) -> bool:
    """Whether the rule is at work in a step: by its number, or by its phase."""
    if config.on != "cycle":
        return budget.phase == config.on
    return budget.step % (config.on_steps + config.off_steps) < config.on_steps
