"""JSONL prompts: malformed lines are named by file and line."""

from __future__ import annotations

from pathlib import Path

import pytest

from siri_megatron.data.jsonl import Row, read_rows
from siri_megatron.errors import DataError

GOOD = '{"prompt": "1+1?", "answer": "2"}\n'


def test_rows(tmp_path: Path) -> None:
    path = tmp_path / "train.jsonl"
    path.write_text(GOOD + "\n" + '{"prompt": "2+2?", "answer": 4, "id": "x", "tier": "easy", "other": 1}\n')
    assert read_rows(path) == [Row("train-000001", "1+1?", "2"), Row("x", "2+2?", "4", "easy")]


@pytest.mark.parametrize(("line", "complaint"), [
    (b'{"prompt": "1"', "not JSON"),
    (b'["1", "2"]', "is a list"),
    (b'{"prompt": "1"}', "answer is None"),
    (b'{"prompt": "", "answer": "2"}', "prompt is ''"),
    (b'{"prompt": 1, "answer": "2"}', "prompt is 1"),
    (b'{"prompt": "1", "answer": true}', "answer is True"),
    (b'\xff\xfe', "not UTF-8"),
    (b'{"prompt": "1", "answer": "1", "id": "train-000001"}', "there already"),
])
def test_malformed_line_is_named(tmp_path: Path, line: bytes, complaint: str) -> None:
    path = tmp_path / "train.jsonl"
    path.write_bytes(GOOD.encode() + b"\n" + line + b"\n" + GOOD.encode())
    with pytest.raises(DataError, match=complaint) as caught:
        read_rows(path)
    assert f"{path}:3" in caught.value.what


@pytest.mark.parametrize("content", [None, "", "\n\n"])
def test_missing_or_empty_file(tmp_path: Path, content: str | None) -> None:
    path = tmp_path / "train.jsonl"
    if content is not None:
        path.write_text(content)
    with pytest.raises(DataError, match=str(path)):
        read_rows(path)
