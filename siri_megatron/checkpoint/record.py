"""The commit record: the one small file that makes a checkpoint exist. Pure, but for reading and writing that file.

Invariants:

- written_last: the record is written after everything it speaks of is on disk; a directory without one is debris.
- atomic: a reader sees the whole record or none.
- no_damage_is_debris: a record that is there but not as it was written is an error, with its path. Nothing is removed
  because of it, and no older commit is taken in its place unasked.
- enough: what a run needs to go on beside model and optimizer; everything random is a function of (seed, step).
"""

from __future__ import annotations

import json
import re
import zlib
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from siri_megatron.errors import ModelError
from siri_megatron.files import read_json, write_json
from siri_megatron.paths import RunDir

FILE = "commit.json"
SUM = "crc32"
"""Of all other fields."""
_STEP = re.compile(r"step-(\d{6,})")


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
    files: dict[str, list[int]] = field(default_factory=dict)
    """Of the state: name -> [bytes, CRC-32] (`sums`); empty without `checkpoint.checksums`."""

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, raw: dict[str, Any], where: str = "") -> CommitRecord:
        """Raises ModelError if fields are missing or unknown."""
        names = {one.name for one in fields(cls)}
        if set(raw) != names:
            raise ModelError(f"commit record {where} has the fields {sorted(raw)}",
                             rule=f"it has exactly {sorted(names)}",
                             fix="resume with the version of siri-megatron that wrote it")
        return cls(**raw)


def write_record(record: CommitRecord, directory: Path) -> None:
    """Commit `directory`: after this it is a checkpoint."""
    said = record.to_json()
    write_json(directory / FILE, said | {SUM: _sum(said)})


def read_record(directory: Path) -> CommitRecord | None:
    """The record of a checkpoint; None for debris: there is none.

    Raises:
        ModelError: it is damaged, or that of another step.
    """
    path = directory / FILE
    if not path.exists():
        return None
    said = read_json(path)
    if said is None:
        raise _damaged(path, "it is no JSON object")
    kept = said.pop(SUM, None)
    record = CommitRecord.from_json(said, str(path))
    if kept != _sum(said):
        raise _damaged(path, f"its checksum is {kept}, that of its content {_sum(said)}")
    if step_of(directory) not in (None, record.step):
        raise _damaged(path, f"it is the record of step {record.step}")
    return record


def step_of(directory: Path) -> int | None:
    """The step that a checkpoint's directory is named after; None: it is no checkpoint's (somebody's copy)."""
    found = _STEP.fullmatch(directory.name)
    return int(found[1]) if found else None


def directories(paths: RunDir) -> list[Path]:
    """Of checkpoints, whole or not, oldest first."""
    found = {path: step for path in paths.checkpoints.glob("step-*") if (step := step_of(path)) is not None}
    return sorted(found, key=found.__getitem__)


def commits(paths: RunDir) -> list[CommitRecord]:
    """All commits, oldest first.

    Raises:
        ModelError: a record is damaged.
    """
    return [record for directory in directories(paths) if (record := read_record(directory))]


def _sum(said: dict[str, Any]) -> str:
    return f"{zlib.crc32(json.dumps(said, sort_keys=True).encode()):08x}"


def _damaged(path: Path, what: str) -> ModelError:
    return ModelError(f"commit record {path} is damaged: {what}", rule="a commit record is as it was written",
                      fix=f"restore it from a backup, or remove {path.parent} to go on from the commit before it")
