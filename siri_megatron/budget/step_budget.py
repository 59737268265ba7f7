"""The budget of one step: what the controller issues, and the stamp that every rollout group of the step carries."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

from siri_megatron.errors import DataError

Phase = Literal["compression", "expansion"]
PHASES: tuple[Phase, Phase] = ("compression", "expansion")


@dataclass(frozen=True)
class StepBudget:
    """The response budget of one step. Given to a group at admission, it never changes (DESIGN section 2)."""

    step: int
    """Consumption step, from 0."""
    cycle: int
    """Cycle that the step belongs to, from 0; the iteration that it completes is `cycle + 1`."""
    phase: Phase
    """Half of the cycle."""
    cap: int
    """Largest number of response tokens."""
    version: int
    """1 for the first cap of a run; rises by one at every change of cap."""

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> StepBudget:
        """Read what `to_json` wrote.

        Raises:
            DataError: a field is missing, surplus, or of the wrong kind.
        """
        numbers = ("step", "cycle", "cap", "version")
        whole = set(data) == {*numbers, "phase"} and all(type(data[name]) is int for name in numbers)
        if not whole or data["phase"] not in PHASES:
            raise DataError(f"{dict(data)!r} is not a step budget",
                            rule=f"integers {', '.join(numbers)} and a phase out of {PHASES}",
                            fix="send what StepBudget.to_json gives")
        return cls(**data)
