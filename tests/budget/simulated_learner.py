"""A small stochastic model of a policy under a cap: lengths, accuracy, and how both move. For tests and pictures.

What it takes from published runs: a truncated answer is wrong; truncation that leaves right answers in the group makes
answers shorter (its pull is the share of such mixed outcomes, T (1 - T)); with room, answers slowly grow again; skill
grows with practice on answers that end, and is lost while more than a third is truncated (LASER: with 45% truncated at
the start of an 8K cap accuracy falls; SIRI: its stair drops at the direct step). The constants are made up: this shows
how a controller behaves, and nothing about a language model.
"""

from __future__ import annotations

from typing import Any

import numpy as np

GROUPS, SAMPLES = 16, 8
ROOM = 0.9
"""Redundancy that answers drift to without pressure: 1.9 times the tokens that a problem needs."""


class SimulatedLearner:
    """Call `step(cap)` for every training step; `accuracy(cap)` and `tokens(cap)` are expectations (large samples)."""

    def __init__(self, seed: int, grid: tuple[int, ...]) -> None:
        self.grid, self.skill, self.redundancy = grid, 0.7, ROOM
        self._random = np.random.default_rng(seed)

    def step(self, cap: int) -> dict[str, Any]:
        """Sample a step under a cap, learn from it; its statistics as `rollout.stats.step_stats` names them."""
        length, right = self._sample(GROUPS, SAMPLES)
        stats = self._stats(length, right, cap)
        self._learn(stats["truncated"])
        return stats

    def accuracy(self, cap: int) -> float:
        length, right = self._sample(4000, 1)
        return float((right & (length <= cap)).mean())

    def tokens(self, cap: int) -> float:
        return float(np.minimum(self._sample(4000, 1)[0], cap).mean())

    def _sample(self, groups: int, samples: int) -> tuple[Any, Any]:
        """Lengths and whether the whole answer is right, [groups, samples]; harder problems need more tokens."""
        hard = self._random.random((groups, 1))
        spread = np.exp(0.15 * self._random.standard_normal((groups, samples)))
        length = (15 + 45 * hard) * (1 + self.redundancy) * spread
        return np.ceil(length), self._random.random((groups, samples)) < self.skill * (1 - 0.2 * hard)

    def _learn(self, truncated: float) -> None:
        pull = truncated * (1 - truncated)
        self.redundancy += 0.004 * (ROOM - self.redundancy) - 0.12 * self.redundancy * pull
        practice, loss = 0.004 * (0.85 - self.skill) * (1 - truncated), 0.02 * max(0.0, truncated - 1 / 3)
        self.skill = max(0.05, self.skill + practice - loss)

    def _stats(self, length: Any, right: Any, cap: int) -> dict[str, Any]:
        rewards = right & (length <= cap)
        at = {budget: (length <= min(budget, cap), right & (length <= min(budget, cap))) for budget in self.grid}
        return {
            "samples": rewards.size, "accuracy": float(rewards.mean()), "truncated": float((length > cap).mean()),
            "accuracy_untruncated": _mean(right[length <= cap]),
            "budget_accuracy": {str(budget): float(scored.mean()) for budget, (_, scored) in at.items()},
            "budget_truncated": {str(budget): float(1 - ended.mean()) for budget, (ended, _) in at.items()},
            "budget_accuracy_untruncated": {str(budget): _mean(right[ended]) for budget, (ended, _) in at.items()},
            "all_wrong_groups": float((~rewards.any(axis=1)).mean()),
            "all_right_groups": float(rewards.all(axis=1).mean()),
        }


def _mean(values: Any) -> float | None:
    return float(values.mean()) if values.size else None
