"""Dynamic sampling: how many prompts a step asks for, where groups without a signal are replaced. Pure.

    own prompts and predicted ones ─► all of their groups finished ─► signals missing, room left: a further round
                                                                       └─► else the step closes

A group carries a signal if its rewards, after overlong handling, are not all equal: the others have no gradient (DAPO,
arXiv 2503.14476, section 3.2; DLER, arXiv 2510.15110). Waiting round by round costs the longest response each time, so
a round is made large enough at once, by the share of groups with a signal in the last steps and in this one
("predictive oversampling" of DOT, arXiv 2601.03969; the margin of one standard deviation is ours).

A round is sent when every group of the one before is finished. So what a step asks for follows from verdicts, not from
which engine was fast: a resumed step asks for the same, and short responses do not get in more easily than long ones.

Invariants:
    never_beyond_the_bound: a step asks for at most wanted + bound groups.
    never_fewer_than_needed: if groups carry a signal as often as estimated, a round is expected to bring what is
        missing, unless the bound forbids it.
    ends: every round asks for at least one group, until enough carry a signal or the bound is reached.
    off_is_off: with a bound of 0 there is one round, of the step's own prompts.
    deterministic: the same tallies give the same rounds.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from siri_megatron.config import Overlong
from siri_megatron.ledger.columns import LedgerColumns
from siri_megatron.reward.advantages import uniform_groups
from siri_megatron.reward.overlong import shaped


@dataclass(frozen=True)
class Tally:
    """Finished groups, and how many of them carry a signal."""

    groups: int = 0
    signal: int = 0

    @classmethod
    def of(cls, rows: LedgerColumns, overlong: Overlong, buffer: float, *, below: int | None = None) -> Tally:
        """Of the rows of a step.

        Args:
            overlong, buffer: what the step's phase makes of a response without an end (`reward.overlong`).
            below: count groups of smaller numbers only; None: all.
        """
        reward = shaped(overlong, rows.reward, rows.response_length, rows.truncated, cap=rows.cap, buffer=buffer)
        counted = np.ones(len(reward), bool) if below is None else rows.group < below
        signal = counted & ~uniform_groups(reward, rows.group)
        return cls(len(np.unique(rows.group[counted])), len(np.unique(rows.group[signal])))

    def __add__(self, other: Tally) -> Tally:
        return Tally(self.groups + other.groups, self.signal + other.signal)

    @property
    def chance(self) -> float:
        """Estimated probability that a group carries a signal: 1 before anything is known, never 0."""
        return max(self.signal, 1) / max(self.groups, 1)


@dataclass(frozen=True)
class Refill:
    """The rule of a run."""

    wanted: int
    """Groups with a signal that a step trains on: `rollout.prompts_per_step`."""
    bound: int
    """Most groups that a step asks for beyond those."""

    @classmethod
    def of(cls, prompts_per_step: int, max_refill: float) -> Refill:
        return cls(prompts_per_step, math.floor(max_refill * prompts_per_step))

    def further(self, so_far: Tally, earlier: Tally) -> int:
        """Groups to ask for now; 0: the step is complete.

        Args:
            so_far: the groups that this step has asked for, all of them finished.
            earlier: those of the last steps.
        """
        missing, room = self.wanted - so_far.signal, self.wanted + self.bound - so_far.groups
        if missing <= 0 or room <= 0:
            return 0
        return min(room, needed(missing, (so_far + earlier).chance))


def needed(missing: int, chance: float) -> int:
    """The smallest number n of groups whose expected signals, less one standard deviation, are those missing.

    n x chance - sqrt(n x chance x (1 - chance)) = missing, solved for sqrt(n).
    """
    spread = math.sqrt(chance * (1 - chance))
    root = (spread + math.sqrt(spread**2 + 4 * chance * missing)) / (2 * chance)
    return max(missing, math.ceil(root**2 - 1e-9))
