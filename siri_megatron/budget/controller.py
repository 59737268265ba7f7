"""The phase controller: which budget every step of a run gets, and where phases end. No I/O.

    controller.budget(s) ─► step s: rollouts, training ─► controller.observe(s, metrics) ─► controller.phase_end(s)

Two kinds, alike from outside: `PhaseController` knows the whole run from its configuration, `ClosedLoopController`
issues the budget of step s + 1 + lag when it hears the metrics of step s. `controller_of` gives the one of a run.

Invariants:
- stamps_immutable: a budget that was issued never changes; a run without closed loop has them all from the start.
- version_counts_changes: the version is 1 plus the number of changes of cap up to this step.
- phases_tile_the_run: every step is in exactly one phase; compression first, then in turn.
- one_tag_a_phase: `phase_end` names each phase once, at its last step, after that step was observed.
- state_round_trip: save, load and go on gives the budgets, tags and states of never stopping.
- another_schedule_is_refused: a state of a run with other budget.* values is not taken over; both values are named.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from siri_megatron.budget import closed_loop
from siri_megatron.budget.closed_loop import LoopState, Rules
from siri_megatron.budget.measure import Measure, starved
from siri_megatron.budget.open_loop import PhasePlan, open_loop, phase_tag
from siri_megatron.budget.step_budget import Phase, StepBudget
from siri_megatron.config import BudgetConfig
from siri_megatron.errors import ConfigError


class Controller(Protocol):
    """What the training loop needs of a phase controller."""

    steps: int
    """Steps of the run."""

    def budget(self, step: int) -> StepBudget:
        """The budget of a step.

        Raises:
            ConfigError: the run has no such step, or it is not issued yet.
        """

    def phase_end(self, step: int) -> str | None:
        """Tag of the phase whose last step this is (`iter3-compressed`, `iter3-expanded`), else None."""

    def observe(self, step: int, metrics: Mapping[str, Any]) -> str:
        """Hear the metrics of a consumed step, in order. Says what was decided because of them; '' if nothing was."""

    def state(self) -> dict[str, Any]:
        """Small JSON state for the commit record."""

    def restore(self, state: Mapping[str, Any]) -> None:
        """Take over a state.

        Raises:
            ConfigError: the state is of a run with another schedule.
        """


def controller_of(config: BudgetConfig, *, grid: Sequence[int], lag: int = 0) -> Controller:
    """The controller of a run.

    Args:
        grid: budgets at which the run measures J.
        lag: steps that are issued ahead of the one that is consumed, beyond the next.
    """
    return ClosedLoopController(config, grid, lag) if config.schedule == "closed" else PhaseController(config)


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
    """Open loop: metrics are heard, but do not move the cap."""

    def __init__(self, config: BudgetConfig) -> None:
        self.config, self.steps = config, config.steps
        self._budgets, self._tags, self._rows = _issue(open_loop(config))

    def budget(self, step: int) -> StepBudget:
        _check_step(step, self.steps)
        return self._budgets[step]

    def phase_end(self, step: int) -> str | None:
        _check_step(step, self.steps)
        return self._tags.get(step)

    def observe(self, step: int, metrics: Mapping[str, Any]) -> str:
        return ""

    def state(self) -> dict[str, Any]:
        return {"config": _dump(self.config)}

    def restore(self, state: Mapping[str, Any]) -> None:
        check_schedule(state["config"], _dump(self.config))

    def table(self) -> list[PhaseRow]:
        """The phases of the run in order."""
        return list(self._rows)


class ClosedLoopController:
    """Closed loop: budgets are issued `lag` + 1 steps ahead of the last step heard, and never revised."""

    def __init__(self, config: BudgetConfig, grid: Sequence[int], lag: int = 0) -> None:
        self.config, self.steps, self.lag = config, config.steps, lag
        self.rules = Rules.of(config, grid)
        self._loop = closed_loop.start(self.rules)
        self._issued: dict[int, StepBudget] = {}
        self._observed = -1
        for _ in range(lag + 1):
            self._issue_next()

    def budget(self, step: int) -> StepBudget:
        _check_step(step, self.steps)
        if step not in self._issued:
            raise ConfigError(f"step {step} has no budget: {min(self._issued)}..{max(self._issued)} have",
                              rule="a closed loop issues the budget of step s + 1 + lag when it hears step s",
                              fix="observe the steps in order")
        return self._issued[step]

    def phase_end(self, step: int) -> str | None:
        budget = self.budget(step)
        last = step + 1 == self.steps or _phase_of(self.budget(step + 1)) != _phase_of(budget)
        return phase_tag(budget.cycle, budget.phase) if last else None

    def observe(self, step: int, metrics: Mapping[str, Any]) -> str:
        if step != self._observed + 1:
            raise ConfigError(f"step {step} was observed after step {self._observed}",
                              rule="a closed loop hears every step once, in order", fix="resume from a commit")
        budget = self.budget(step)
        current = _phase_of(budget) == (self._loop.cycle, self._loop.phase)  # with a lag, old steps come after the turn
        measure = Measure.of(budget.cap, metrics) if current else None
        self._loop = closed_loop.hear(self._loop, self.rules, measure, starved=starved(metrics))
        self._observed = step
        self._issued = {at: issued for at, issued in self._issued.items() if at >= step}
        return self._issue_next()

    def _issue_next(self) -> str:
        step = max(self._issued, default=-1) + 1
        if step >= self.steps:
            return ""
        self._loop, decided = closed_loop.issue(self._loop, self.rules)
        before, cap = self._issued.get(step - 1), self._loop.cap
        version = before.version + (cap != before.cap) if before else 1
        self._issued[step] = StepBudget(step, self._loop.cycle, self._loop.phase, cap, version)
        return decided and f"from step {step}: {decided}"

    def state(self) -> dict[str, Any]:
        return {"config": self._dump(), "observed": self._observed, "loop": self._loop.to_json(),
                "issued": [issued.to_json() for issued in self._issued.values()]}

    def restore(self, state: Mapping[str, Any]) -> None:
        check_schedule(state["config"], self._dump())
        self._observed, self._loop = state["observed"], LoopState.from_json(state["loop"])
        issued = [StepBudget.from_json(budget) for budget in state["issued"]]
        self._issued = {budget.step: budget for budget in issued}

    def _dump(self) -> dict[str, Any]:
        return {**_dump(self.config), "lag": self.lag, "grid": list(self.rules.grid)}


def check_schedule(before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Raises ConfigError, naming every value that differs, unless a state belongs to this schedule."""
    differing = [f"{key} {before.get(key)}, the config now has {now.get(key)}"
                 for key in sorted(before.keys() | now.keys()) if before.get(key) != now.get(key)]
    if differing:
        raise ConfigError(f"the run was trained so far under budget.{'; budget.'.join(differing)}",
                          rule="a resumed run keeps its schedule", fix="undo the change of budget.*, or start anew")


def _check_step(step: int, steps: int) -> None:
    if not 0 <= step < steps:
        raise ConfigError(f"step {step} is outside of a run of {steps} steps", rule="0 <= step < steps of the run",
                          fix="raise budget.cycles (staged: budget.stages) to train for longer")


def _phase_of(budget: StepBudget) -> tuple[int, Phase]:
    return budget.cycle, budget.phase


def _dump(config: BudgetConfig) -> dict[str, Any]:
    """The schedule as flat JSON; the settings of a closed loop only where they are read."""
    dump = config.model_dump(mode="json")
    closed = dump.pop("closed")
    return dump if config.schedule != "closed" else dump | {f"closed.{key}": value for key, value in closed.items()}


def _issue(phases: Sequence[PhasePlan]) -> tuple[tuple[StepBudget, ...], dict[int, str], tuple[PhaseRow, ...]]:
    """Budgets, the tag of every step that ends a phase, and the rows of the table."""
    budgets: list[StepBudget] = []
    tags: dict[int, str] = {}
    rows: list[PhaseRow] = []
    for plan in phases:
        first = len(budgets)
        for cap in plan.caps:
            version = budgets[-1].version + (cap != budgets[-1].cap) if budgets else 1
            budgets.append(StepBudget(len(budgets), plan.cycle, plan.phase, cap, version))
        tags[len(budgets) - 1] = plan.tag
        rows.append(PhaseRow(plan.cycle, plan.phase, plan.tag, first, len(budgets) - 1, plan.caps[0], plan.caps[-1],
                             min(plan.caps), max(plan.caps), sum(plan.caps) / len(plan.caps)))
    return tuple(budgets), tags, tuple(rows)
