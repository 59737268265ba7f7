"""Files and directories of rows. Oracle: what `datasets`, pyarrow and json wrote."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pytest
from pyarrow import parquet

from siri_megatron.config import DatasetConfig
from siri_megatron.data.rows import read_rows
from siri_megatron.data.tables import read_path
from siri_megatron.errors import DataError

ROWS = [{"prompt": f"p{i}", "answer": i, "extra": {"inner": [i, i + 1]}} for i in range(2500)]


def write_jsonl(path: Path, rows: list[dict]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def write_parquet(path: Path, rows: list[dict]) -> None:
    parquet.write_table(pa.Table.from_pylist(rows), path, row_group_size=700)


def write_stream(path: Path, rows: list[dict]) -> None:
    table = pa.Table.from_pylist(rows)
    with pa.ipc.new_stream(str(path), table.schema) as writer:
        writer.write_table(table, max_chunksize=600)


def write_file(path: Path, rows: list[dict]) -> None:
    table = pa.Table.from_pylist(rows)
    with pa.ipc.new_file(str(path), table.schema) as writer:
        writer.write_table(table, max_chunksize=600)


@pytest.mark.parametrize(("name", "write"), [("a.jsonl", write_jsonl), ("a.parquet", write_parquet),
                                             ("a.arrow", write_stream), ("b.arrow", write_file)])
def test_every_row_once_in_order(tmp_path: Path, name: str, write: Callable[[Path, list[dict]], None]) -> None:
    path = tmp_path / name
    write(path, ROWS)
    records = list(read_path(path, None))
    assert [dict(record.fields) for record in records] == ROWS
    assert len({record.key for record in records}) == len(ROWS)
    assert records[1700].place == f"{path}{':' if name.endswith('jsonl') else ' row '}1701"


def test_directory_of_datasets_own_writing(tmp_path: Path) -> None:
    """`save_to_disk` of several shards, and of several splits."""
    from datasets import Dataset, DatasetDict

    made = {name: Dataset.from_list(ROWS[start:start + 50]) for name, start in (("train", 0), ("test", 50))}
    made["train"].save_to_disk(str(tmp_path / "one"), num_shards=3)
    DatasetDict(made).save_to_disk(str(tmp_path / "both"))
    assert [record.fields["answer"] for record in read_path(tmp_path / "one", None)] == list(range(50))
    assert [record.fields["answer"] for record in read_path(tmp_path / "both", "test")] == list(range(50, 100))
    with pytest.raises(DataError, match="the split is None"):
        list(read_path(tmp_path / "both", None))


def test_directory_of_shards(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    for shard in range(2):
        write_parquet(tmp_path / "data" / f"train-0000{shard}-of-00002.parquet", ROWS[shard * 5:shard * 5 + 5])
    write_jsonl(tmp_path / "data" / "training-notes.jsonl", ROWS[:1])
    write_jsonl(tmp_path / "data" / "test.jsonl", ROWS[20:30])
    (tmp_path / "README.md").write_text("not rows")
    train = list(read_path(tmp_path, "train"))
    assert [record.fields["answer"] for record in train] == list(range(10))
    assert train[7].place.endswith("train-00001-of-00002.parquet row 3")
    assert len({record.key for record in train}) == 10
    assert len(list(read_path(tmp_path, "test"))) == 10
    with pytest.raises(DataError, match="the split is dev") as caught:
        list(read_path(tmp_path, "dev"))
    assert "test.jsonl" in caught.value.what


def test_broken_lines_are_rows_too(tmp_path: Path) -> None:
    path = tmp_path / "train.jsonl"
    path.write_bytes(b'{"a": 1}\n\n{"a": \n\xff\xfe\n["x"]\n{"a": 2}')
    records = list(read_path(path, None))
    assert [(record.place[len(str(path)):], record.problem[:11]) for record in records] == [
        (":1", ""), (":3", "is not JSON"), (":4", "is not UTF-"), (":5", "is a list, "), (":6", "")]
    path.write_text("[" * 100_000)
    assert "is not JSON" in next(read_path(path, None)).problem


@pytest.mark.parametrize("name", ["x.parquet", "x.arrow"])
def test_file_that_is_no_table(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"PAR1 is what it is not" * 9)
    with pytest.raises(DataError, match=f"{name} cannot be read"):
        list(read_path(tmp_path / name, None))


def test_a_cell_without_a_value_is_its_rows_affair(tmp_path: Path) -> None:
    """And nobody's, in a column that is not asked for."""
    path, bad = tmp_path / "x.parquet", pa.array([b"fine", b"\xff\xfe", b"fine"]).cast(pa.string(), safe=False)
    late = pa.array([0, 1 << 50, 0]).cast(pa.timestamp("s"))
    parquet.write_table(pa.table({"prompt": ["a", "b", "c"], "answer": bad, "when": late}), path)
    first, second, third = read_path(path, None)
    assert (first.fields["answer"], third.fields["answer"], second.fields["prompt"]) == ("fine", "fine", "b")
    assert repr(second.fields["answer"]).startswith("unreadable ('utf-8' codec can't decode")
    assert repr(second.fields["when"]).startswith("unreadable (")
    with pytest.raises(DataError, match=r"1 of 3 rows .*\n.*row 2: answer is unreadable"):
        read_rows(read_path(path, None), DatasetConfig(path=str(path)).resolved(), str(path))


def test_two_columns_of_one_name_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.arrow"
    table = pa.Table.from_arrays([pa.array(["a"]), pa.array(["b"])], ["prompt", "prompt"])
    with pa.ipc.new_file(str(path), table.schema) as writer:
        writer.write_table(table)
    with pytest.raises(DataError, match="prompt twice"):
        list(read_path(path, None))


def test_a_file_that_may_not_be_read_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "x.jsonl"
    path.write_text("{}\n")

    def denied(self: Path, *_: object) -> None:
        raise PermissionError(13, "Permission denied", str(self))

    monkeypatch.setattr(Path, "open", denied)  # tests may run as root, who may read everything
    with pytest.raises(DataError, match=r"x\.jsonl cannot be read: .*Permission denied"):
        list(read_path(path, None))


def test_nothing_there(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="do not exist"):
        list(read_path(tmp_path / "none.jsonl", None))
    (tmp_path / "x.csv").write_text("a,b")
    with pytest.raises(DataError, match=r"x\.csv is no \.jsonl"):
        list(read_path(tmp_path / "x.csv", None))
    with pytest.raises(DataError, match="no such files"):
        list(read_path(tmp_path, None))
