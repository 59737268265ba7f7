"""What `--dry-run` prints: the resolved config, the processes, the budget of every phase. Pure text."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from siri_megatron.budget.closed_loop import Rules
from siri_megatron.budget.controller import PhaseController, PhaseRow
from siri_megatron.budget.method import method_at
from siri_megatron.budget.step_budget import PHASES
from siri_megatron.config import BudgetConfig, RunConfig
from siri_megatron.launch.spec import ProcessPlan, ProcessSpec

if TYPE_CHECKING:
    from siri_megatron.data.prompts import PromptSet


def describe_plan(plan: ProcessPlan) -> str:
    """One block a process: role, kind, cores, log, environment, command line."""
    return "\n".join(_process(process) for process in plan.processes)


def _process(process: ProcessSpec) -> str:
    cores = f"  cores {','.join(map(str, process.cores))}" if process.cores else ""
    address = f"  {process.url}" if process.url else ""
    environment = " ".join(f"{name}={shlex.quote(value)}" for name, value in sorted(process.env.items()))
    if not process.argv:
        return f"{process.role}  ({process.kind}){address}  given: started by somebody else, {process.tp} workers\n"
    return (f"{process.role}  ({process.kind}){address}{cores}  log {process.log}\n"
            f"    {environment}\n    {shlex.join(process.argv)}\n")


def describe_prompts(config: RunConfig, training: PromptSet | None, suites: Mapping[str, PromptSet]) -> str:
    """A line for the training prompts and one for each suite: their number, what was dropped, what is left out."""
    from siri_megatron.rollout.suites import suites_of

    lines = [f"training: {training.sentence()}"] if training is not None else []
    lines += [f"{suite.name}: {suites[suite.name].sentence()}{suite.sentence()}"
              for suite in suites_of(config.evaluation, suites)]
    return "\n".join(lines or ["prompts: those of the replayed ledger"])


def describe_budget(config: RunConfig) -> str:
    """The phases of the run: steps and caps; of a closed loop the limits that it keeps."""
    if config.budget.schedule == "closed":
        return _columns(_limits(config.budget, Rules.of(config.budget, config.rollout.budget_grid))) + "\n"
    return _phases(config.budget)


def describe_method(config: RunConfig) -> str:
    """What holds in each phase: overlong answers, advantage, clip range, entropy bonus, learning rate."""
    methods = [method_at(config, phase).to_json() for phase in PHASES]
    rows = [(key, *(_value(method[key]) for method in methods)) for key in methods[0]]
    return _columns([("", *PHASES), *rows]) + "\n"


def _value(value: str | float) -> str:
    return value if isinstance(value, str) else f"{value:g}"


def _phases(config: BudgetConfig) -> str:
    heads = ("tag", "phase", "steps", "cap", "mean cap")
    rows = [_phase(row) for row in PhaseController(config).table()]
    return _columns([heads, *rows]) + f"\n{config.steps} steps, schedule {config.schedule}\n"


def _limits(config: BudgetConfig, rules: Rules) -> list[tuple[str, str]]:
    """What a closed loop will keep, whatever it measures: (name, limit) rows."""
    limits = rules.limits
    return [
        ("schedule", f"closed: at most {config.steps} steps, {config.phase_ends} phase ends"),
        ("cap", f"{config.l_min}..{config.l_max}, first {rules.first_cap} for at least "
                f"{max(rules.hold_steps, rules.window)} steps, at most {rules.slope} tokens a step"),
        ("phase", f"{rules.dwell}..{rules.longest_phase} steps, decided from {rules.window} steps together"),
        ("L_min", f"smallest of {', '.join(map(str, rules.grid))} with J(B) >= {1 - limits.delta:g} J(cap)"),
        ("L_max", f"up a notch above {limits.grow_truncated:.0%} truncated, down to the smallest B with "
                  f"J(2B) <= {limits.kappa:g} J(B)"),
        ("compression", f"held above {limits.hold_truncated:.0%} truncated; ends at {limits.end_truncated:.0%}, or at "
                        f"L_min when answers that end are right {1 - limits.recovery:.0%} as often as before it"),
        ("expansion", f"ends at L_max when accuracy gains {limits.plateau:.1%} or less in {rules.window} steps"),
    ]


def _phase(row: PhaseRow) -> tuple[str, ...]:
    return (row.tag, row.phase, f"{row.first_step}..{row.last_step}", f"{row.first_cap} → {row.last_cap}",
            f"{row.mean_cap:.1f}")


def _columns(rows: Sequence[Sequence[str]]) -> str:
    widths = [max(len(cell) for cell in column) for column in zip(*rows, strict=True)]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
                     for row in rows)
