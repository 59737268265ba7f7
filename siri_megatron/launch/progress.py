"""How far a run directory has come, read from its files: the last step, the last commit, whether there is a run."""

from __future__ import annotations

from pathlib import Path

from siri_megatron.checkpoint.record import FILE, commits, directories, step_of
from siri_megatron.files import read_json
from siri_megatron.observe import jsonl
from siri_megatron.paths import RunDir


def steps_done(run_dir: RunDir) -> int:
    """Steps finished so far: the newest `step` in metrics.jsonl, plus one."""
    steps = [step for record in jsonl.read(run_dir.metrics) if isinstance(step := record.get("step"), int)]
    return steps[-1] + 1 if steps else 0


def last_commit(run_dir: RunDir) -> int | None:
    """The newest committed step, as its directory is named; None without a commit. For telling: it raises nothing."""
    found = [step_of(directory) for directory in directories(run_dir) if (directory / FILE).exists()]
    return found[-1] if found else None


def check_commits(run_dir: RunDir) -> None:
    """Before a run goes on: the learners would say the same, but after everything was started.

    Raises:
        ModelError: a commit record is damaged.
    """
    commits(run_dir)


def last_status(run_dir: RunDir) -> str:
    """Status of the last verdict: success, failed or interrupted; empty without one (or if it was killed)."""
    return str((read_json(run_dir.result) or {}).get("status", ""))


def exports(run_dir: RunDir) -> list[Path]:
    """Exports that are whole, oldest first: hidden ones were left by a kill."""
    found = sorted(run_dir.export.glob("[!.]*/config.json"), key=lambda path: path.stat().st_mtime)
    return [path.parent for path in found]


def holds_run(run_dir: RunDir) -> str:
    """What of an earlier run lies here that a new run would mix with, e.g. `12 steps, commit of step 8`; else empty."""
    found = []
    if steps := steps_done(run_dir):
        found.append(f"{steps} steps")
    if (commit := last_commit(run_dir)) is not None:
        found.append(f"a commit of step {commit}")
    if ledger := _count(run_dir.ledger):
        found.append(f"{ledger} ledger steps")
    if evaluations := _count(run_dir.evaluations):
        found.append(f"{evaluations} evaluations")
    return ", ".join(found)


def _count(directory: Path) -> int:
    return sum(1 for _ in directory.iterdir()) if directory.is_dir() else 0
