"""LASER-D: a bonus for right responses within a target length, which depends on difficulty and moves with the model.

    r' = r + bonus x 1[right] x 1[|y| <= L_A(difficulty of the group)]

Difficulty is the share s of right responses of a group: easy s >= 2/3, medium s >= 1/3, hard below. L_A of a difficulty
is the smallest length l with coverage(l) x C >= 1: of the responses to such prompts the share that is no longer than l,
times the fewest right ones that a group of k has there (C = floor(2k/3), floor(k/3), 1), so that about one right answer
of every group is expected to fit.

Source: LASER, arXiv 2505.15612, and its repository hkust-nlp/Laser (coverage over all responses of a difficulty,
rounding of C). There a monitor set of 500 prompts is sampled every so many steps and l is taken from a coarse grid;
here the newest rollouts of training are looked at, which costs nothing, and l is exact. Until the first estimate there
is no target: every right response gets the bonus.

Invariants:
- right_alone_is_paid: a wrong response keeps its reward.
- within_is_paid: of two right responses of a group the shorter never gets less.
- smallest_that_covers: coverage(L_A) x C >= 1, and no shorter length does it.
- harder_has_more_room: of the same lengths, the target of a harder difficulty is no shorter.
- bounded_state: at most `window` lengths a difficulty.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from siri_megatron.budget.step_budget import StepBudget
from siri_megatron.config import LaserDConfig
from siri_megatron.reward.length_rule import LengthRule, RuleRows

DIFFICULTIES = ("easy", "medium", "hard")
Targets = dict[str, int | None]


class LaserD(LengthRule):
    """Args: group_size: samples a prompt, k."""

    def __init__(self, config: LaserDConfig, group_size: int) -> None:
        self._config = config
        self._needed = needed(group_size)
        self._targets: Targets = dict.fromkeys(DIFFICULTIES)
        self._lengths: dict[str, list[int]] = {name: [] for name in DIFFICULTIES}
        self._steps = 0

    def shape(self, rows: RuleRows, reward: NDArray[np.float64], budget: StepBudget) -> NDArray[np.float64]:
        return reward + paid(rows, self._targets, self._config.bonus)

    def observe(self, rows: RuleRows) -> None:
        difficulty = difficulties(rows)
        for number, name in enumerate(DIFFICULTIES):
            seen = self._lengths[name] + rows.length[difficulty == number].tolist()
            self._lengths[name] = seen[-self._config.window:]
        self._steps += 1
        if self._steps % self._config.every_steps == 0:
            self._targets = {name: target(self._lengths[name], self._needed[name]) for name in DIFFICULTIES}

    def figures(self) -> dict[str, float | None]:
        return {f"laser_d_{name}": self._targets[name] for name in DIFFICULTIES}

    def state(self) -> dict[str, Any]:
        return {"steps": self._steps, "targets": dict(self._targets), "lengths": dict(self._lengths)}

    def restore(self, state: Mapping[str, Any]) -> None:
        self._steps, self._targets = state["steps"], dict(state["targets"])
        self._lengths = {name: list(state["lengths"][name]) for name in DIFFICULTIES}


def needed(group_size: int) -> dict[str, int]:
    """The fewest right responses of a group of each difficulty, C."""
    return {"easy": max(1, 2 * group_size // 3), "medium": max(1, group_size // 3), "hard": 1}


def difficulties(rows: RuleRows) -> NDArray[np.int64]:
    """[n] number in DIFFICULTIES of each row's group; -1 where the group has no verdict."""
    _, index = np.unique(rows.group, return_inverse=True)
    judged = np.bincount(index, ~np.isnan(rows.verdict))
    right = np.bincount(index, rows.verdict == 1)
    of_group = np.where(3 * right >= 2 * judged, 0, np.where(3 * right >= judged, 1, 2))
    return np.where(judged > 0, of_group, -1)[index]


def paid(rows: RuleRows, targets: Targets, bonus: float) -> NDArray[np.float64]:
    """[n] what is added: the bonus or 0."""
    room = np.array([np.inf if targets[name] is None else targets[name] for name in DIFFICULTIES], np.float64)
    within = rows.length <= room[difficulties(rows)]
    return np.where((rows.verdict == 1) & within, bonus, 0.0)


def target(lengths: Sequence[int], needed: int) -> int | None:
    """The smallest l with (share of lengths <= l) x needed >= 1; None without lengths."""
    return sorted(lengths)[-(-len(lengths) // needed) - 1] if lengths else None
