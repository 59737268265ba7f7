"""Rows of local files: JSONL, Parquet, Arrow, and directories of them. Every row knows its place.

Invariants:
    in_order: files in the order of their names, rows as they stand in the file; so the order is that of the disk.
    every_row_once: each row of a file gives one record, a broken one too; empty lines of JSONL give none.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from siri_megatron.config.data import FILES
from siri_megatron.errors import DataError

if TYPE_CHECKING:
    import pyarrow as pa

RULE = f"prompts are {', '.join(FILES)} files, a directory of them, or owner/name of a data set on the hub"
SHARD = re.compile(r"-\d+-of-\d+$")


@dataclass(frozen=True)
class Record:
    """A row as it was read. `problem` says why it could not be."""

    place: str
    """File and line, or file and number of the row, from 1."""
    key: str
    """A name of the row, unique among the rows read together."""
    fields: Mapping[str, Any] = field(default_factory=dict)
    problem: str = ""


def read_path(path: Path, split: str | None) -> Iterator[Record]:
    """The rows of a file or a directory.

    Raises:
        DataError: nothing is there, no file is of a known kind or of this split, or a file cannot be read at all.
    """
    for file in [path] if path.is_file() else _files(path, split):
        if file.suffix == ".jsonl":
            yield from _jsonl(file)
        elif file.suffix in FILES:
            yield from table_records(_tables(file), str(file), file.stem)
        else:
            raise DataError(f"{file} is no {', '.join(FILES)} file", rule=RULE,
                            fix="write one JSON object a line, and name the file .jsonl")


def _files(path: Path, split: str | None) -> list[Path]:
    if not path.is_dir():
        raise DataError(f"prompts {path} do not exist", rule=RULE, fix="give the path of a file or a directory")
    found = sorted(file for file in path.rglob("*") if file.suffix in FILES and file.is_file())
    chosen = [file for file in found if split is None or _split_of(file, path, split)]
    splits = sorted({SHARD.sub("", str(file.relative_to(path).with_suffix(""))) for file in chosen})
    if not chosen or len(splits) > 1:
        names = ", ".join(str(file.relative_to(path)) for file in found[:8]) or "no such files"
        raise DataError(f"directory {path} holds {names}; the split is {split}",
                        rule="a directory is read as one data set: files or a directory named after `split`, all of "
                             "one name but for -00000-of-00002", fix="set split, or give the path of one file")
    return chosen


def _split_of(file: Path, root: Path, split: str) -> bool:
    named = re.match(rf"{re.escape(split)}([-_.]|$)", file.stem)
    return bool(named) or split in file.relative_to(root).parts[:-1]


def _jsonl(path: Path) -> Iterator[Record]:
    try:
        with path.open("rb") as file:
            for number, raw in enumerate(file, 1):
                if raw.strip():
                    yield _line(raw, f"{path}:{number}", f"{path.stem}-{number:06d}")
    except OSError as error:
        raise _unreadable(path, error) from None


def _line(raw: bytes, place: str, key: str) -> Record:
    try:
        value = json.loads(raw.decode())
    except UnicodeDecodeError as error:
        return Record(place, key, problem=f"is not UTF-8: {error.reason} at byte {error.start}")
    except (ValueError, RecursionError) as error:
        return Record(place, key, problem=f"is not JSON: {error}")
    if not isinstance(value, dict):
        return Record(place, key, problem=f"is a {type(value).__name__}, not an object")
    return Record(place, key, value)


@dataclass(frozen=True)
class Unreadable:
    """Stands for a cell that has no value in Python: text that is no UTF-8, a time beyond the calendar."""

    why: str

    def __repr__(self) -> str:
        return f"unreadable ({self.why})"


def table_records(batches: Iterator[pa.RecordBatch], origin: str, stem: str) -> Iterator[Record]:
    """Rows of Arrow batches, numbered from 1.

    Raises:
        DataError: two columns have one name.
    """
    number = 0
    for batch in batches:
        names = batch.schema.names
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise DataError(f"{origin} has the columns {names}, {twice[0]} twice", rule="a column is known by its name",
                            fix="write the table without the other one")
        for row in _rows(batch):
            number += 1
            yield Record(f"{origin} row {number}", f"{stem}-{number:06d}", row)


def _rows(batch: pa.RecordBatch) -> list[dict[str, Any]]:
    """Of a batch; cell by cell where one of them cannot be had, for it may lie in a column that nobody asks for."""
    try:
        return list(batch.to_pylist())
    except (ValueError, OverflowError):
        columns = {name: [_cell(value) for value in batch.column(name)] for name in batch.schema.names}
        return [{name: cells[row] for name, cells in columns.items()} for row in range(batch.num_rows)]


def _cell(value: pa.Scalar) -> Any:
    try:
        return value.as_py()
    except (ValueError, OverflowError) as error:
        return Unreadable(str(error))


def _tables(path: Path) -> Iterator[pa.RecordBatch]:
    """Record batches of a Parquet file or an Arrow one, of either format (`datasets` writes the streaming one).

    Raises:
        DataError: it is none.
    """
    import pyarrow as pa

    try:
        yield from _parquet(path) if path.suffix == ".parquet" else arrow_batches(path)
    except (pa.ArrowInvalid, OSError) as error:
        raise _unreadable(path, error) from None


def _unreadable(path: Path, error: Exception) -> DataError:
    return DataError(f"{path} cannot be read: {error}", rule=RULE, fix="write the file again, or let it be read")


def _parquet(path: Path) -> Iterator[pa.RecordBatch]:
    from pyarrow import parquet

    with parquet.ParquetFile(path) as file:
        yield from file.iter_batches(batch_size=1024)


def arrow_batches(path: Path) -> Iterator[pa.RecordBatch]:
    import pyarrow as pa

    with pa.memory_map(str(path)) as source:
        if source.read(6) == b"ARROW1":
            with pa.ipc.open_file(source) as reader:
                yield from (reader.get_batch(index) for index in range(reader.num_record_batches))
        else:
            source.seek(0)
            with pa.ipc.open_stream(source) as reader:
                yield from reader
