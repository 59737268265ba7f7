"""A ledger to train from, made without engines: jobs whose matter is Slurm need none. Not a test."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from tool_modules import tool

SCHEDULE = ("budget.cycle_steps=24", "budget.cycles=1", "rollout.prompts_per_step=8", "checkpoint.every_steps=1",
            "evaluation.at_start=false", "evaluation.at_phase_ends=false")


def record(runs: Path, schedule: Sequence[str] = SCHEDULE) -> Path:
    """The directory of a run of tiny.yaml whose rollouts are drawn at random."""
    root: Path = tool("made_ledger").record(["name=recorded", f"runs_dir={runs}", *schedule])
    return root
