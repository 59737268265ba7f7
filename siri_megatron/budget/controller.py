"""The phase controller: which budget every step of a run gets, and where phases end.

A cycle is a compression phase (first half), then an expansion phase. Step s is the (s+1)-th step consumed, so it takes
the schedule at t = s + 1: the lowest cap is consumed by the last step of compression, the highest by the last step of
expansion, and a tag attaches to the weights that this step leaves behind.

Invariants:
- pure_in_the_step: `budget(step)` depends on the configuration and the step alone; restarting cannot change it.
- version_counts_changes: the version is 1 plus the number of changes of cap up to this step.
- phases_tile_the_run: every step is in exactly one row of `table()`, compression first, phases of equal length.
- one_tag_a_phase: `phase_end` names each phase once, at its last step.
- state_round_trip: `restore(state())` gives an equal controller, and a state of another schedule is refused.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from siri_megatron.budget.schedule import SCHEDULES, round_cap
from siri_megatron.budget.step_budget import PHASES, Phase, StepBudget
from siri_megatron.config import BudgetConfig
from siri_megatron.errors import ConfigError


@dataclass(frozen=True)
class PhaseRow:
    """One phase of the run, for `--dry-run`; steps are consumption steps, both ends included."""

    cycle: int
    phase: Phase
    tag: str
    first_step: int
    last_step: int
    first_cap: int
    last_cap: int
    lowest_cap: int
    highest_cap: int
    mean_cap: float


class PhaseController:
    """Issues the budget of every step. No I/O; open loop: metrics are heard, but do not move the cap."""

    def __init__(self, config: BudgetConfig) -> None:
        self.config = config
        self.steps = config.steps
        self._budgets = _issue(config)
        self._observed = -1

    def budget(self, step: int) -> StepBudget:
        """The budget of a step.

        Raises:
            ConfigError: the run has no such step.
        """
        if not 0 <= step < self.steps:
            raise ConfigError(f"step {step} is outside of a run of {self.steps} steps",
                              rule="0 <= step < budget.cycles x budget.cycle_steps",
                              fix="raise budget.cycles to train for longer")
        return self._budgets[step]

    def phase_end(self, step: int) -> str | None:
        """Tag of the phase whose last step this is (`iter3-compressed`, `iter3-expanded`), else None."""
        budget = self.budget(step)
        return phase_tag(budget) if (step + 1) % self._phase_steps == 0 else None

    def observe(self, step: int, metrics: Mapping[str, float]) -> None:
        """Hear the metrics of a consumed step."""
        self._observed = step

    def state(self) -> dict[str, Any]:
        """Small JSON state for the commit record: the last step heard and the budget that it was given."""
        heard = self._observed
        return {"observed": heard, "budget": self._budgets[heard].to_json() if heard >= 0 else None}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Take over a state.

        Raises:
            ConfigError: the state is of a run with another schedule.
        """
        observed = int(state["observed"])
        issued = self.budget(observed).to_json() if observed >= 0 else None
        if issued != state["budget"]:
            raise ConfigError(f"step {observed} was trained under {state['budget']}, the config now gives {issued}",
                              rule="a resumed run keeps its schedule", fix="undo the change of budget.*, or start anew")
        self._observed = observed

    def table(self) -> list[PhaseRow]:
        """The phases of the run in order."""
        starts = range(0, self.steps, self._phase_steps)
        return [_row(self._budgets[start:start + self._phase_steps]) for start in starts]

    @property
    def _phase_steps(self) -> int:
        return self.config.cycle_steps // 2


def phase_tag(budget: StepBudget) -> str:
    """Name of the checkpoint at the end of this phase; iterations count from 1 as in the paper."""
    ending = "compressed" if budget.phase == "compression" else "expanded"
    return f"iter{budget.cycle + 1}-{ending}"


def _issue(config: BudgetConfig) -> tuple[StepBudget, ...]:
    schedule = SCHEDULES[config.schedule]
    issued: list[StepBudget] = []
    for step in range(config.steps):
        cycle, within = divmod(step, config.cycle_steps)
        phase = PHASES[2 * within // config.cycle_steps]
        cap = round_cap(schedule(within + 1, config.cycle_steps, config.l_min, config.l_max))
        version = issued[-1].version + (cap != issued[-1].cap) if issued else 1
        issued.append(StepBudget(step, cycle, phase, cap, version))
    return tuple(issued)


def _row(budgets: tuple[StepBudget, ...]) -> PhaseRow:
    first, last, caps = budgets[0], budgets[-1], [budget.cap for budget in budgets]
    return PhaseRow(first.cycle, first.phase, phase_tag(first), first.step, last.step, first.cap, last.cap,
                    min(caps), max(caps), sum(caps) / len(caps))
