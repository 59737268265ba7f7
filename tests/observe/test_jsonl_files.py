from __future__ import annotations

import json
import tempfile
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from siri_megatron.observe.jsonl import Tailer, append, read

records = st.lists(st.dictionaries(st.text(max_size=5), st.one_of(st.integers(), st.text(max_size=20))), max_size=8)


@given(records, st.lists(st.integers(1, 40), min_size=1))
def test_each_record_once(written, chunks):
    """Bytes that arrive in pieces of any size, cut anywhere (also within a character)."""
    data = b"".join(json.dumps(record, ensure_ascii=False).encode() + b"\n" for record in written)
    with tempfile.TemporaryDirectory() as directory:
        path, seen, at = Path(directory) / "f.jsonl", [], 0
        tailer = Tailer(path)
        while at < len(data):
            for size in chunks:
                with path.open("ab") as file:
                    file.write(data[at:at + size])
                at += size
                seen += tailer.poll()
        assert seen == written
        assert tailer.poll() == []


def test_whole_lines_only(tmp_path):
    path = tmp_path / "f.jsonl"
    tailer = Tailer(path)
    assert tailer.poll() == []
    path.write_bytes(b'{"a": 1}\n{"a": 2')
    assert tailer.poll() == [{"a": 1}]
    assert tailer.poll() == []
    with path.open("ab") as file:
        file.write(b"5}\n")
    assert tailer.poll() == [{"a": 25}]
    assert tailer.skipped == 0


@pytest.mark.parametrize("torn", [b'{"a": 1, "b', b"{", b'"text"\n', b"\xff\xfe"])
def test_a_torn_line_costs_itself_only(tmp_path, torn):
    path = tmp_path / "f.jsonl"
    append(path, {"a": 0})
    with path.open("ab") as file:
        file.write(torn)
    append(path, {"a": 2})
    tailer = Tailer(path)
    assert tailer.poll() == [{"a": 0}, {"a": 2}]
    assert tailer.skipped == 1


def test_a_cut_file_is_read_again(tmp_path):
    path = tmp_path / "f.jsonl"
    tailer = Tailer(path)
    for number in range(3):
        append(path, {"n": number})
    assert len(tailer.poll()) == 3
    path.write_text('{"n": 0}\n')
    assert tailer.poll() == [{"n": 0}]


def test_a_replaced_file_is_read_again(tmp_path):
    path, part = tmp_path / "f.jsonl", tmp_path / "part"
    append(path, {"n": 0})
    tailer = Tailer(path)
    tailer.poll()
    for number in range(3):
        append(part, {"n": number})
    part.replace(path)
    assert tailer.poll() == [{"n": 0}, {"n": 1}, {"n": 2}]


def test_json_has_no_nan(tmp_path):
    path = tmp_path / "f.jsonl"
    append(path, {"a": float("nan"), "b": np.float32(0.5), "c": (np.int64(1), float("inf")), 32: {"d": np.True_}})
    assert json.loads(path.read_text(), parse_constant=pytest.fail) == {
        "a": None, "b": 0.5, "c": [1, None], "32": {"d": True}}


def test_several_writers_never_mix_lines(tmp_path):
    path = tmp_path / "f.jsonl"
    context = get_context("fork")
    writers = [context.Process(target=write_many, args=(path, name)) for name in "ab"]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join(60)
        assert writer.exitcode == 0
    found = read(path)
    assert [record["n"] for record in found if record["name"] == "a"] == list(range(200))
    assert [record["n"] for record in found if record["name"] == "b"] == list(range(200))


def write_many(path, name):
    for number in range(200):
        append(path, {"name": name, "n": number, "padding": "x" * 500})
