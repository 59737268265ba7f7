"""Write a step of the ledger: append finished groups, then close it with one atomic rename."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path
from typing import IO

from siri_megatron.budget.step_budget import StepBudget
from siri_megatron.errors import DataError
from siri_megatron.files import on_disk, sync_path
from siri_megatron.ledger import index as idx
from siri_megatron.ledger.read import StepRows, map_file, rows_of
from siri_megatron.ledger.recover import discard, salvage
from siri_megatron.ledger.schema import SCHEMA, Rollout, to_batch


class StepWriter:
    """Writes one step. What a killed writer had finished is taken over by the next one with the same stamp.

    Args:
        ledger_root: the run's ledger directory; made if it is not there.
        stamp: the budget that every group of the step was admitted under.
        identity: the run's identity hash.

    Raises:
        DataError: the step is closed already.
        RunFailed: the disk takes no more; so do `append` and `close`.
    """

    def __init__(self, ledger_root: Path, stamp: StepBudget, identity: str) -> None:
        self.stamp, self.identity = stamp, identity
        self.path = idx.step_path(ledger_root, stamp.step)
        self.open_path = self.path.with_name(self.path.name + ".open")
        if self.path.exists():
            raise DataError(f"ledger step {self.path} is closed already", rule="a closed step never changes",
                            fix="start a run under a new name, or remove the directory to collect the step again")
        with on_disk(self.open_path):
            self._header, self._segments = self._take_over() if self.open_path.exists() else self._create()
            self._data: IO[bytes] = (self.open_path / idx.DATA).open("ab")
            self._index: IO[bytes] = (self.open_path / idx.INDEX).open("ab")

    @property
    def groups(self) -> set[int]:
        """Groups that are in the step already."""
        return {segment.group for segment in self._segments}

    def append(self, group: list[Rollout]) -> None:
        """Append one whole group; it survives a kill of this process once the call returns.

        Its rows carry the step's stamp; their cap may be below the step's, and is the same for all of them.
        """
        rows = sorted(group, key=lambda row: row.sample)
        self._check(rows)
        payload = to_batch(rows).serialize().to_pybytes()
        start = self._data.tell()
        segment = idx.Segment(rows[0].group, len(rows), start, start + len(payload), idx.checksum(payload))
        with on_disk(self.open_path):
            self._data.write(payload)
            self._data.flush()
            self._index.write(idx.line(segment.to_json()))
            self._index.flush()
        self._segments.append(segment)

    def so_far(self) -> StepRows:
        """The rows that are in the step already, mapped."""
        return rows_of(self._header, memoryview(map_file(self.open_path / idx.DATA)), self._segments)

    def close(self) -> None:
        """End the stream, write the closing line, flush to disk, rename."""
        with on_disk(self.open_path):
            self._data.write(idx.END_OF_STREAM)
            size = self._data.tell()
            _sync(self._data)
            self._index.flush()
            body = (self.open_path / idx.INDEX).read_bytes()
            self._index.write(idx.closing_line(body, self._segments, size))
            _sync(self._index)
            self.abandon()
            sync_path(self.open_path)
            self.open_path.rename(self.path)
            sync_path(self.path.parent)

    def abandon(self) -> None:
        """Close the files without closing the step: the next writer takes it over.

        What a full disk did not take is tried once more by a close, and given up: `append` has raised because of it.
        """
        for file in (self._data, self._index):
            with suppress(OSError):
                file.close()

    def _take_over(self) -> tuple[idx.Header, list[idx.Segment]]:
        """Finished groups of a killed writer, if they carry this stamp and identity; anything else is removed."""
        index = salvage(self.open_path)
        if index is not None and (index.header.stamp, index.header.identity) == (self.stamp, self.identity):
            return index.header, list(index.segments)
        discard(self.open_path)
        return self._create()

    def _create(self) -> tuple[idx.Header, list[idx.Segment]]:
        self.open_path.mkdir(parents=True)
        schema = SCHEMA.serialize().to_pybytes()
        header = idx.Header(self.stamp, self.identity, len(schema), idx.checksum(schema))
        (self.open_path / idx.DATA).write_bytes(schema)
        (self.open_path / idx.INDEX).write_bytes(idx.line(header.to_json()))
        return header, []

    def _check(self, rows: list[Rollout]) -> None:
        if not rows or rows[0].group in self.groups:
            raise ValueError(f"group {rows[0].group if rows else 'of no rows'} cannot be appended to {self.open_path}")
        expected = (self.stamp.step, self.stamp.phase, rows[0].cap, self.stamp.version, rows[0].group)
        for row in rows:
            found = (row.step, row.phase, row.cap, row.cap_version, row.group)
            if found != expected or row.cap > self.stamp.cap:
                raise ValueError(f"row {row.group}/{row.sample} is stamped {found}, its step and group {expected}")


def _sync(file: IO[bytes]) -> None:
    file.flush()
    os.fsync(file.fileno())
