"""Append-only JSONL files: one writer dies at any byte, readers never notice more than a missing line.

Invariants:
- whole_lines_only: a reader sees only lines that end; a half-written last line waits until it is whole.
- a_torn_line_costs_itself_only: the next append starts a fresh line, and readers skip and count the torn one.
- each_record_once: successive polls give every record once, in order, until the file is replaced or cut.
"""

from __future__ import annotations

import errno
import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from siri_megatron.files import named


def append(path: Path, record: Mapping[str, Any]) -> None:
    """Append a record as one line by one write, so that several processes may append to the same local file.

    Raises:
        OSError: the disk is full or the directory is gone.
    """
    data = line(record).encode()
    file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
    try:
        with named(path):
            if _torn(file):
                data = b"\n" + data
            if os.write(file, data) != len(data):
                raise OSError(errno.ENOSPC, "only a part of a record could be written")
    finally:
        os.close(file)


def line(record: Mapping[str, Any]) -> str:
    """A record as its line."""
    return json.dumps(plain(record), allow_nan=False) + "\n"


def plain(value: Any) -> Any:
    """The value in JSON's own types: numpy scalars become Python's, NaN and infinity null (JSON has neither)."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if hasattr(value, "item"):
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value


def read(path: Path) -> list[dict[str, Any]]:
    """Every whole record of a file; none if it does not exist."""
    return Tailer(path).poll()


class Tailer:
    """Follows a growing file. A file that was cut or replaced is read from its beginning again."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.skipped = 0
        """Lines that were no JSON object: torn by a writer that died."""
        self._offset = 0
        self._inode = -1

    def poll(self) -> list[dict[str, Any]]:
        """Records that were finished since the last poll."""
        try:
            with self.path.open("rb") as file:
                self._locate(os.fstat(file.fileno()))
                file.seek(self._offset)
                data = file.read()
        except FileNotFoundError:
            return []
        whole = data[:data.rfind(b"\n") + 1]
        self._offset += len(whole)
        parsed = [_parse(line) for line in whole.splitlines() if line.strip()]
        self.skipped += sum(record is None for record in parsed)
        return [record for record in parsed if record is not None]

    def _locate(self, stat: os.stat_result) -> None:
        if stat.st_ino != self._inode or stat.st_size < self._offset:
            self._offset, self._inode = 0, stat.st_ino


def _parse(line: bytes) -> dict[str, Any] | None:
    try:
        record = json.loads(line)
    except ValueError:
        return None
    return record if isinstance(record, dict) else None


def _torn(file: int) -> bool:
    """Whether the file ends within a line."""
    size = os.fstat(file).st_size
    return size > 0 and os.pread(file, 1, size - 1) != b"\n"
