"""What `--dry-run` prints: the resolved config, the processes, the budget of every phase. Pure text."""

from __future__ import annotations

import shlex
from collections.abc import Sequence

import yaml

from siri_megatron.budget.controller import PhaseController, PhaseRow
from siri_megatron.config import BudgetConfig, Section
from siri_megatron.launch.spec import ProcessPlan, ProcessSpec


def describe_config(config: Section) -> str:
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False)


def describe_plan(plan: ProcessPlan) -> str:
    """One block a process: role, kind, cores, log, environment, command line."""
    return "\n".join(_process(process) for process in plan.processes)


def _process(process: ProcessSpec) -> str:
    cores = f"  cores {','.join(map(str, process.cores))}" if process.cores else ""
    address = f"  {process.url}" if process.url else ""
    environment = " ".join(f"{name}={shlex.quote(value)}" for name, value in sorted(process.env.items()))
    return (f"{process.role}  ({process.kind}){address}{cores}  log {process.log}\n"
            f"    {environment}\n    {shlex.join(process.argv)}\n")


def describe_budget(config: BudgetConfig) -> str:
    """The phases of the run: steps and caps."""
    heads = ("tag", "phase", "steps", "cap", "mean cap")
    rows = [_phase(row) for row in PhaseController(config).table()]
    return _columns([heads, *rows]) + f"\n{config.steps} steps, schedule {config.schedule}\n"


def _phase(row: PhaseRow) -> tuple[str, ...]:
    return (row.tag, row.phase, f"{row.first_step}..{row.last_step}", f"{row.first_cap} → {row.last_cap}",
            f"{row.mean_cap:.1f}")


def _columns(rows: Sequence[Sequence[str]]) -> str:
    widths = [max(len(cell) for cell in column) for column in zip(*rows, strict=True)]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
                     for row in rows)
