"""Columns, answers, messages; malformed rows are named by place and counted."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from siri_megatron.config import DatasetConfig
from siri_megatron.data.rows import Row, extract_answer, read_rows
from siri_megatron.data.tables import Record, read_path
from siri_megatron.errors import DataError

GOOD = '{"prompt": "1+1?", "answer": "2"}\n'


def rows_of(*fields: dict[str, Any], **columns: str) -> list[Row]:
    records = [Record(f"f:{number}", f"f-{number}", row) for number, row in enumerate(fields, 1)]
    return read_rows(records, DatasetConfig(path="f.jsonl", **columns).resolved(), "f")


def read_file(path: Path) -> list[Row]:
    return read_rows(read_path(path, None), DatasetConfig(path=str(path)).resolved(), str(path))


def test_rows(tmp_path: Path) -> None:
    path = tmp_path / "train.jsonl"
    path.write_text(GOOD + "\n" + '{"prompt": "2+2?", "answer": 4, "id": "x", "tier": "easy", "other": 1}\n')
    assert read_file(path) == [Row("train-000001", "1+1?", "2"), Row("x", "2+2?", "4", "easy")]


@pytest.mark.parametrize(("line", "complaint"), [
    (b'{"prompt": "1"', "not JSON"),
    (b'["1", "2"]', "is a list"),
    (b'{"prompt": "1", "answer": NaN}', "answer is nan"),  # what pandas writes for a missing one
    (b'{"prompt": "1", "answer": Infinity}', "answer is inf"),
    (b'{"prompt": "1"}', "answer is None"),
    (b'{"prompt": "", "answer": "2"}', "prompt is ''"),
    (b'{"prompt": 1, "answer": "2"}', "prompt is 1"),
    (b'{"prompt": "1", "answer": true}', "answer is True"),
    (b'\xff\xfe', "not UTF-8"),
    (b'{"prompt": "1", "answer": "1", "id": "train-000001"}', "there already"),
    (b'{"prompt": "1\\ud83d", "answer": "1"}', "half a character"),
    (b'{"prompt": "1", "answer": "2\\ud83d"}', "half a character"),
    (b'{"prompt": "1", "answer": "2", "id": "\\udc00"}', "half a character"),
    (b'{"prompt": [], "answer": "1"}', r"prompt is \[\]"),
    (b'{"prompt": [{"role": "user"}], "answer": "1"}', "has the message"),
    (b'{"prompt": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}], "answer": "1"}',
     "ends with a message of 'assistant'"),
    (b'{"prompt": [{"role": "root", "content": "a"}], "answer": "1"}', "has the message"),
])
def test_malformed_line_is_named(tmp_path: Path, line: bytes, complaint: str) -> None:
    path = tmp_path / "train.jsonl"
    path.write_bytes(GOOD.encode() + b"\n" + line + b"\n" + GOOD.encode())
    with pytest.raises(DataError, match=complaint) as caught:
        read_file(path)
    assert f"{path}:3" in caught.value.what
    assert "1 of 3 rows" in caught.value.what


def test_the_first_few_are_named_and_all_are_counted(tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"
    path.write_text("".join(GOOD if i % 2 else "{\n" for i in range(40)))
    with pytest.raises(DataError) as caught:
        read_file(path)
    assert f"20 of 40 rows of {path}" in caught.value.what
    assert [f"{path}:{i} is not JSON" in caught.value.what for i in (1, 3, 5, 7, 9, 11)] == [True] * 5 + [False]
    assert "and 15 more" in caught.value.what


@pytest.mark.parametrize("content", ["", "\n\n"])
def test_empty_file(tmp_path: Path, content: str) -> None:
    path = tmp_path / "train.jsonl"
    path.write_text(content)
    with pytest.raises(DataError, match=f"{path} hold no rows"):
        read_file(path)


def test_columns() -> None:
    row = {"q": "1?", "meta": {"truth": 1.5, "level": 3}, "uid": 7, "answer": "no"}
    found = rows_of(row, prompt_column="q", answer_column="meta.truth", id_column="uid", tier_column="meta.level")
    assert found == [Row("7", "1?", "1.5", "3")]
    with pytest.raises(DataError, match=r"meta\.none is missing; there are \['answer', 'meta', 'q', 'uid'\]"):
        rows_of(row, prompt_column="q", tier_column="meta.none")
    with pytest.raises(DataError, match=r"prompt is None; there are \['answer', 'meta', 'q', 'uid'\]"):
        rows_of(row)


@pytest.mark.parametrize(("value", "text"), [
    (27.0, "27"), (27, "27"), (10**400, "1" + "0" * 400), (0.5, "0.5"), (-3.0, "-3"), ("027", "027")])
def test_numbers_as_answers(value: Any, text: str) -> None:
    """AMC's answers are floats: 27.0 is 27."""
    assert rows_of({"prompt": "p", "answer": value})[0].answer == text


def test_messages() -> None:
    turns = [{"role": "system", "content": "be brief"}, {"role": "user", "content": "1+1?"}]
    assert rows_of({"prompt": turns, "answer": "2"})[0] == Row("f-1", "1+1?", "2", "", (
        ("system", "be brief"), ("user", "1+1?")))
    assert rows_of({"prompt": turns[1:], "answer": "2"})[0].turns == (("user", "1+1?"),)


GSM8K = {"question": "How many?", "answer": "She has <<1200+34=1234>>1234 of them.\n#### 1,234"}
MATH = {"problem": "What?", "answer": "\\frac{1}{2}", "solution": "so \\boxed{\\frac{1}{2}}", "level": 3,
        "unique_id": "test/algebra/7.json", "subject": "Algebra"}


@pytest.mark.parametrize(("preset", "fields", "row"), [
    ("gsm8k", GSM8K, Row("f-1", "How many?", "1234")),
    ("math500", MATH, Row("test/algebra/7.json", "What?", "\\frac{1}{2}", "3")),
    ("deepscaler", {key: MATH[key] for key in ("problem", "answer", "solution")}, Row("f-1", "What?", "\\frac{1}{2}")),
    ("aime24", {"id": 60, "problem": "What?", "solution": "", "answer": "204"}, Row("60", "What?", "204")),
    ("aime25", {"id": "0", "problem": "What?", "answer": "70"}, Row("0", "What?", "70")),
    ("amc23", {"id": 0, "question": "What?", "answer": 27.0, "url": ""}, Row("0", "What?", "27")),
])
def test_presets(preset: str, fields: dict[str, Any], row: Row) -> None:
    assert rows_of(fields, preset=preset) == [row]


def test_the_answer_of_a_format_has_to_be_there() -> None:
    with pytest.raises(DataError, match="answer holds no gsm8k answer"):
        rows_of({"question": "q", "answer": "42"}, preset="gsm8k")
    with pytest.raises(DataError, match="answer holds no gsm8k answer"):
        rows_of({"question": "q", "answer": "so #### "}, preset="gsm8k")
    with pytest.raises(DataError, match="solution holds no boxed answer"):
        rows_of(MATH | {"solution": "so 1/2"}, preset="math500", answer_column="solution", answer_format="boxed")


@given(st.text(max_size=30), st.integers(-10**9, 10**9))
def test_gsm8k_answers(text: str, number: int) -> None:
    assert extract_answer(f"{text}#### {number:,}", "gsm8k") == str(number)


def test_boxed_answers() -> None:
    assert extract_answer("a \\boxed{1} b \\boxed{\\sqrt{2}} c", "boxed") == "\\sqrt{2}"
    assert extract_answer("none", "boxed") is None
