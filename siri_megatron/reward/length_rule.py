"""What a length rule is: it turns the rewards of a step into those that the advantages are made of.

    verdicts ─► overlong handling ─► length rule ─► advantages, groups without signal
        └────► accuracy, J(B), solve rates: no rule touches these (DOT has cut its outliers before the verdicts)

So with a rule an all-right group whose lengths differ is no longer uniform: it carries a signal and is trained on.

Invariants of every rule:
- no_verdict_no_reward: a row whose reward is NaN keeps NaN.
- order_free: a row's reward depends on the rows of the step and the state, not on where the rows stand.
- state_round_trip: a rule restored from its state, which is JSON, goes on as if it had never stopped.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from siri_megatron.budget.step_budget import StepBudget
from siri_megatron.ledger.columns import LedgerColumns


@dataclass(frozen=True)
class RuleRows:
    """The rollouts of a step, arrays of [n]."""

    length: NDArray[np.int64]
    """Response tokens, forced ones included: the budget is spent on them too."""
    cap: NDArray[np.int64]
    """The stamped cap of each row, tokens."""
    group: NDArray[np.int64]
    verdict: NDArray[np.float64]
    """1 right at the cap, 0 wrong, between them partly right (a custom verifier's), NaN no verdict."""

    @classmethod
    def of(cls, rows: LedgerColumns) -> RuleRows:
        length, cap, group = (np.asarray(column, np.int64) for column in (rows.response_length, rows.cap, rows.group))
        return cls(length, cap, group, np.asarray(rows.reward, np.float64))

    def __len__(self) -> int:
        return len(self.length)


class LengthRule:
    """The rule `none`, and what the others share. Only rank 0 of a run asks it and tells it anything."""

    def shape(self, rows: RuleRows, reward: NDArray[np.float64], budget: StepBudget) -> NDArray[np.float64]:
        """The rewards to make advantages of. reward: [n], NaN without verdict; never changed in place."""
        return reward

    def observe(self, rows: RuleRows) -> None:
        """Hear a consumed step, once it was shaped."""

    def figures(self) -> dict[str, float | None]:
        """What is in force for the next `shape`, for the metrics."""
        return {}

    def state(self) -> dict[str, Any]:
        """Small JSON state for the commit record."""
        return {}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Take over what `state` gave."""
