"""Read closed steps of the ledger: memory-mapped, columns and single rows. Row order is group-major, sample-minor."""

from __future__ import annotations

import mmap
import re
from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate, islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from siri_megatron.errors import DataError
from siri_megatron.ledger import index as idx
from siri_megatron.ledger.schema import SCHEMA, Rollout, from_columns

_CLOSED = re.compile(r"step-(\d{6})$")
_TRAINED = [SCHEMA.get_field_index(name) for name in ("prompt_ids", "response_ids", "logprobs")]
_GROUP = SCHEMA.get_field_index("group")
_FORCED = [SCHEMA.get_field_index(name) for name in ("forced_start", "forced_end")]


class StepRows:
    """The rows of one closed step, in canonical order whatever the order in which groups finished.

    Columns are numpy arrays of length `len(self)`; `rollout(i)` reads just that row.
    """

    def __init__(self, header: idx.Header, batches: list[pa.RecordBatch]) -> None:
        self.budget, self.identity = header.stamp, header.identity
        self._header, self._batches = header, batches
        self._columns = [batch.columns for batch in batches]
        self._ends = list(accumulate(batch.num_rows for batch in batches))
        self._table = pa.Table.from_batches(batches, schema=SCHEMA)

    def __len__(self) -> int:
        return self._table.num_rows

    def below(self, group: int) -> StepRows:
        """The rows of groups of smaller numbers: those of the step's own prompts, without refills."""
        return StepRows(self._header, [batch for batch in self._batches if batch.column(_GROUP)[0].as_py() < group])

    def rollout(self, i: int) -> Rollout:
        """Row `i`, 0 <= i < len(self)."""
        return from_columns(*self._place(i))

    def tokens(self, i: int) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any], np.ndarray[Any, Any]]:
        """(prompt_ids, response_ids, logprobs) of row `i`, uncopied: what training reads, far faster than all of it."""
        columns, row = self._place(i)
        prompt, response, logprobs = (columns[column][row].values.to_numpy() for column in _TRAINED)
        return prompt, response, logprobs

    def forced(self, i: int) -> tuple[int, int]:
        """[start, end) of the response tokens of row `i` that were not sampled; empty mostly."""
        columns, row = self._place(i)
        start, end = (int(columns[column][row].as_py()) for column in _FORCED)
        return start, end

    def _place(self, i: int) -> tuple[list[pa.Array], int]:
        """The columns of the batch that row `i` lies in, and its number there."""
        if not 0 <= i < len(self):
            raise IndexError(f"row {i} of a step with {len(self)} rows")
        at = bisect_right(self._ends, i)
        return self._columns[at], i - (self._ends[at - 1] if at else 0)

    def column(self, name: str) -> np.ndarray[Any, Any]:
        """Any scalar column of SCHEMA."""
        return self._table.column(name).to_numpy()

    @property
    def group(self) -> np.ndarray[Any, Any]:
        return self.column("group")

    @property
    def cap(self) -> np.ndarray[Any, Any]:
        """The stamped cap of each row; with caps a prompt it may be below the step's."""
        return self.column("cap")

    @property
    def sample(self) -> np.ndarray[Any, Any]:
        return self.column("sample")

    @property
    def reward(self) -> np.ndarray[Any, Any]:
        return self.column("reward")

    @property
    def truncated(self) -> np.ndarray[Any, Any]:
        return self.column("truncated")

    @property
    def outcome(self) -> np.ndarray[Any, Any]:
        return self.column("outcome")

    @property
    def tier(self) -> np.ndarray[Any, Any]:
        return self.column("tier")

    @property
    def prompt_length(self) -> np.ndarray[Any, Any]:
        """Tokens, int64."""
        return self._lengths("prompt_ids")

    @property
    def prompt_id(self) -> np.ndarray[Any, Any]:
        return self.column("prompt_id")

    @property
    def response_length(self) -> np.ndarray[Any, Any]:
        """Tokens with the stop token, int64."""
        return self._lengths("response_ids")

    @property
    def forced_length(self) -> np.ndarray[Any, Any]:
        """Response tokens that were not sampled, int64."""
        return (self.column("forced_end") - self.column("forced_start")).astype(np.int64)

    @property
    def spans(self) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any], np.ndarray[Any, Any]]:
        """(row, weight version as text, tokens) of every span of every row, [spans] each, in the order of the rows."""
        spans = self._table.column("spans").combine_chunks()
        flat = pc.list_flatten(spans)
        version, start, end = (flat.field(name).to_numpy(zero_copy_only=False) for name in ("version", "start", "end"))
        return pc.list_parent_indices(spans).to_numpy(), version, end - start

    @property
    def budget_rewards(self) -> np.ndarray[Any, Any]:
        """[rows, budgets], float32: reward of clip(response, B) over the budget grid."""
        flat = pc.list_flatten(self._table.column("budget_rewards")).to_numpy()
        return flat.reshape(len(self), -1)

    def _lengths(self, name: str) -> np.ndarray[Any, Any]:
        return pc.list_value_length(self._table.column(name)).to_numpy().astype(np.int64)


def closed_steps(ledger_root: Path) -> list[int]:
    """Numbers of the closed steps, ascending."""
    found = (_CLOSED.fullmatch(path.name) for path in ledger_root.glob("step-*"))
    return sorted(int(match.group(1)) for match in found if match)


def open_step(ledger_root: Path, step: int) -> StepRows:
    """Map a closed step after checking every byte of it against the index.

    Raises:
        DataError: the step is missing, or a file of it is not what was written; names the file and both checksums.
    """
    path = idx.step_path(ledger_root, step)
    if not path.is_dir():
        raise DataError(f"ledger step {path} does not exist", rule="only closed steps can be read",
                        fix=f"closed steps here: {ranges(closed_steps(ledger_root)) or 'none'}")
    index = _checked_index(path / idx.INDEX)
    view = memoryview(map_file(path / idx.DATA))
    _check_data(path / idx.DATA, view, index)
    return rows_of(index.header, view, index.segments)


def rows_of(header: idx.Header, data: memoryview, segments: Sequence[idx.Segment]) -> StepRows:
    """The rows of the segments of a data file, uncopied. data: its bytes, to the end of the last segment at least."""
    batches = list(islice(pa.ipc.open_stream(pa.py_buffer(data)), len(segments)))
    order = np.argsort([segment.group for segment in segments], kind="stable")
    return StepRows(header, [batches[i] for i in order])


def map_file(path: Path) -> mmap.mmap | bytes:
    if not path.is_file() or path.stat().st_size == 0:
        return b""
    with path.open("rb") as file:
        return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)


def _checked_index(path: Path) -> idx.Index:
    text = path.read_bytes() if path.is_file() else b""
    index = idx.parse(text, path)
    if index is None or index.closing is None:
        raise _corrupt(path, "its header or its closing line is broken or missing")
    claim = {"segments": len(index.segments), "rows": sum(segment.rows for segment in index.segments),
             "size": index.closing.get("size"), "crc32": idx.checksum(text[:index.body_size])}
    if claim != index.closing or not text.endswith(b"}}\n") or text.count(b"\n") != len(index.segments) + 2:
        raise _corrupt(path, f"recorded {index.closing}, found {claim}")
    return index


def _check_data(path: Path, view: memoryview, index: idx.Index) -> None:
    size = index.closing["size"] if index.closing else 0
    if len(view) != size or bytes(view[-8:]) != idx.END_OF_STREAM:
        raise _corrupt(path, f"recorded {size} bytes, found {len(view)}, or another end than Arrow's end of stream")
    whole = idx.intact_segments(index, view)
    if whole == len(index.segments):
        return
    bad = index.segments[whole] if whole >= 0 else None
    start, end, crc32 = (bad.start, bad.end, bad.crc32) if bad else (0, index.header.end, index.header.crc32)
    what = f"group {bad.group}" if bad else "the schema"
    raise _corrupt(path, f"{what}, bytes {start}..{end}: recorded crc32 {crc32}, found {idx.checksum(view[start:end])}")


def _corrupt(path: Path, what: str) -> DataError:
    return DataError(f"ledger file {path} is corrupt: {what}", rule="a closed step never changes",
                     fix=f"remove {path.parent} to collect the step again, or restore it from a copy")


def ranges(steps: Sequence[int]) -> str:
    """Ascending numbers for people: `0..7, 9`."""
    starts = [step for at, step in enumerate(steps) if not at or steps[at - 1] != step - 1]
    ends = [step for at, step in enumerate(steps) if at + 1 == len(steps) or steps[at + 1] != step + 1]
    return ", ".join(str(start) if start == end else f"{start}..{end}" for start, end in zip(starts, ends, strict=True))
