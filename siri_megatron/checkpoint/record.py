"""The commit record: the one small file that makes a checkpoint exist. Pure, but for reading and writing that file.

Invariants:

- written_last: the record is written after everything it speaks of is on disk; a directory without one is debris.
- atomic: a reader sees the whole record or none.
- enough: what a run needs to go on beside model and optimizer; everything random is a function of (seed, step).
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from siri_megatron.errors import ModelError
from siri_megatron.files import read_json, write_json

FILE = "commit.json"


@dataclass(frozen=True)
class CommitRecord:
    """The state of a run between two steps."""

    step: int
    """The next step to train; steps 0 .. step-1 are consumed."""
    tag: str | None
    """Name of the phase that ended here, such as `iter3-compressed`."""
    decisions: dict[str, Any]
    """State of everything that decides (`siri_megatron.decisions`), by name."""
    consumed_prompts: int
    """Cursor of the prompt sampler: prompts trained on so far."""
    ledger_steps: int
    """Steps of the ledger that belong to this state; later ones were collected for steps that never trained."""
    weight_version: str
    """Version under which the engines knew these weights."""
    identity: str
    """Hash of model, data and method: must match to resume."""
    runtime: str
    """Hash of the whole configuration: may change between a run and its resumption; says whether it did."""

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, raw: dict[str, Any]) -> CommitRecord:
        """Raises ModelError if fields are missing or unknown."""
        names = {field.name for field in fields(cls)}
        if set(raw) != names:
            raise ModelError(f"commit record has the fields {sorted(raw)}", rule=f"it has exactly {sorted(names)}",
                             fix="resume with the version of siri-megatron that wrote it")
        return cls(**raw)


def write_record(record: CommitRecord, directory: Path) -> None:
    """Commit `directory`: after this it is a checkpoint."""
    write_json(directory / FILE, record.to_json())


def read_record(directory: Path) -> CommitRecord | None:
    """The record of a checkpoint; None for debris (no record, or one cut short by a dying machine)."""
    raw = read_json(directory / FILE)
    return CommitRecord.from_json(raw) if raw is not None else None
