"""The index of a ledger step: where each segment lies and what its bytes sum to. Parsing only, no I/O.

`index.jsonl` is a header line, a line a segment, and a closing line:

    {"format": 2, "stamp": {...}, "identity": "…", "end": 1234, "crc32": "89ab…"}      the schema message, bytes 0..end
    {"group": 3, "rows": 8, "start": 1234, "end": 5678, "crc32": "0123…"}              one record batch: one group
    {"closed": {"segments": 16, "rows": 128, "size": 9999, "crc32": "…"}}              crc32 of all lines above

Invariants:
    prefix: cutting the index or the data anywhere leaves a readable prefix of whole groups, or nothing.
    named: no single changed byte of a closed step goes unnoticed; the error names the file and both checksums.
"""

from __future__ import annotations

import json
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from siri_megatron.budget.step_budget import StepBudget
from siri_megatron.errors import DataError

FORMAT = 2
DATA, INDEX = "rollouts.arrow", "index.jsonl"
END_OF_STREAM = b"\xff\xff\xff\xff\x00\x00\x00\x00"  # Arrow IPC streaming format: continuation marker, length 0


@dataclass(frozen=True)
class Segment:
    """One group's record batch: bytes start..end of the data file."""

    group: int
    rows: int
    start: int
    end: int
    crc32: str

    def to_json(self) -> dict[str, Any]:
        return dict(self.__dict__)


@dataclass(frozen=True)
class Header:
    """The step's stamp, the run's identity, and the checksum of the schema message."""

    stamp: StepBudget
    identity: str
    end: int
    crc32: str

    def to_json(self) -> dict[str, Any]:
        return {"format": FORMAT, "stamp": self.stamp.to_json(), "identity": self.identity, "end": self.end,
                "crc32": self.crc32}


@dataclass(frozen=True)
class Index:
    """What an index file says. `closing` is None while the step is open."""

    header: Header
    segments: tuple[Segment, ...]
    closing: dict[str, Any] | None
    body_size: int
    """Bytes of the index before its closing line."""


def step_path(ledger_root: Path, step: int) -> Path:
    return ledger_root / f"step-{step:06d}"


def checksum(data: bytes | memoryview) -> str:
    return f"{zlib.crc32(data):08x}"


def line(record: dict[str, Any]) -> bytes:
    return json.dumps(record, separators=(",", ":")).encode() + b"\n"


def closing_line(body: bytes, segments: list[Segment], size: int) -> bytes:
    """The last line; `body` is every line above it, `size` the whole data file."""
    closed = {"segments": len(segments), "rows": sum(segment.rows for segment in segments), "size": size,
              "crc32": checksum(body)}
    return line({"closed": closed})


def parse(text: bytes, path: Path) -> Index | None:
    """The longest valid prefix of an index; None if not even the header is whole. path: for the error.

    Raises:
        DataError: another version of the ledger wrote it; then nothing of it is broken, and nothing may be cut.
    """
    lines = text.split(b"\n")[:-1]  # what follows the last newline is a torn line
    first = _record(lines[0]) if lines else None
    _check_format(first, path)
    header = _header(first)
    if header is None:
        return None
    segments: list[Segment] = []
    size = len(lines[0]) + 1
    for raw in lines[1:]:
        record = _record(raw)
        if record is not None and isinstance(record.get("closed"), dict):
            return Index(header, tuple(segments), record["closed"], size)
        segment = _segment(record, segments[-1].end if segments else header.end)
        if segment is None:
            break
        segments.append(segment)
        size += len(raw) + 1
    return Index(header, tuple(segments), None, size)


def _record(raw: bytes) -> dict[str, Any] | None:
    try:
        record = json.loads(raw)
    except ValueError:
        return None
    return record if isinstance(record, dict) else None


def _check_format(header: dict[str, Any] | None, path: Path) -> None:
    found = header.get("format") if header else None
    if isinstance(found, int) and found != FORMAT:
        raise DataError(f"{path} has ledger format {found}, this version of siri-megatron has {FORMAT}",
                        rule="a ledger is read by the version that wrote it",
                        fix="go on with that version, or start another run with name=OTHER")


def _header(record: dict[str, Any] | None) -> Header | None:
    if record is None or record.get("format") != FORMAT:
        return None
    try:
        return Header(StepBudget.from_json(record["stamp"]), record["identity"], record["end"], record["crc32"])
    except (DataError, KeyError, TypeError, ValueError):
        return None


def _segment(record: dict[str, Any] | None, expected_start: int) -> Segment | None:
    try:
        segment = Segment(**record) if record is not None else None
    except TypeError:
        return None
    if segment is None or segment.start != expected_start or not isinstance(segment.end, int):
        return None
    return segment


def intact_segments(index: Index, data: bytes | memoryview) -> int:
    """How many leading segments have all their bytes and the right checksum; -1 if the schema message has not."""
    if checksum(data[:index.header.end]) != index.header.crc32 or len(data) < index.header.end:
        return -1
    for i, segment in enumerate(index.segments):
        if segment.end > len(data) or checksum(data[segment.start:segment.end]) != segment.crc32:
            return i
    return len(index.segments)
