"""A ledger to train from, made without engines: jobs whose matter is Slurm need none. Not a test."""

from __future__ import annotations

from pathlib import Path

from tool_modules import tool

SCHEDULE = ("budget.cycle_steps=24", "budget.cycles=1", "rollout.prompts_per_step=8", "checkpoint.every_steps=24",
            "evaluation.at_start=false", "evaluation.at_phase_ends=false")


def record(runs: Path, name: str, *schedule: str) -> Path:
    """The directory of a run of tiny.yaml whose rollouts are drawn at random."""
    root: Path = tool("made_ledger").record([f"name={name}", f"runs_dir={runs}", *schedule])
    return root
