"""Prompts from a JSONL file: one object a line with `prompt` and `answer`, optionally `id` and `tier`."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from siri_megatron.errors import DataError

RULE = 'a line is {"prompt": "...", "answer": "..."}, optionally with "id" and "tier"'


@dataclass(frozen=True)
class Row:
    """One question as it stands in the file."""

    id: str
    prompt: str
    answer: str
    tier: str = ""


def read_rows(path: Path) -> list[Row]:
    """Every row of the file, in order. Empty lines are skipped.

    Raises:
        DataError: the file is missing or has no rows, a line is malformed (named by file and line), or an id is twice.
    """
    if not path.is_file():
        raise DataError(f"prompts {path} do not exist", rule=RULE, fix="give the path of a JSONL file")
    rows: dict[str, Row] = {}
    for number, line in _lines(path):
        row = _row(line, f"{path}:{number}", f"{path.stem}-{number:06d}")
        if row.id in rows:
            raise DataError(f"{path}:{number}: id {row.id!r} is there already", rule="ids are unique",
                            fix="number the rows, or leave ids out")
        rows[row.id] = row
    if not rows:
        raise DataError(f"prompts {path} hold no rows", rule=RULE, fix="give a file with at least one line")
    return list(rows.values())


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    with path.open("rb") as file:
        for number, raw in enumerate(file, 1):
            try:
                text = raw.decode()
            except UnicodeDecodeError as error:
                raise DataError(f"{path}:{number} is not UTF-8: {error.reason} at byte {error.start}",
                                fix="save the file as UTF-8") from None
            if text.strip():
                yield number, text


def _row(line: str, place: str, default_id: str) -> Row:
    try:
        record = json.loads(line)
    except ValueError as error:
        raise DataError(f"{place} is not JSON: {error}", rule=RULE, fix="mend the line") from None
    if not isinstance(record, dict):
        raise DataError(f"{place} is a {type(record).__name__}, not an object", rule=RULE, fix="mend the line")
    prompt, answer = _text(record, "prompt", place), _text(record, "answer", place)
    return Row(str(record.get("id", default_id)), prompt, answer, str(record.get("tier", "")))


def _text(record: dict[str, Any], name: str, place: str) -> str:
    value = record.get(name)
    if name == "answer" and type(value) in (int, float):
        return str(value)
    if not isinstance(value, str) or not value.strip():
        raise DataError(f"{place}: {name} is {value!r}", rule=RULE,
                        fix=f"write {name!r} as a string that is not empty; there are {sorted(record)}")
    return value
