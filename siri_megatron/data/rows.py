"""Questions out of the rows of a table: columns, answers, messages. Pure.

Invariants:
    all_or_nothing: one malformed row refuses the table; the first few are named by place, all are counted.
    unique: no two questions have the same id.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from siri_megatron.config import DatasetConfig
from siri_megatron.data.tables import Record
from siri_megatron.errors import DataError
from siri_megatron.reward.extract import BOX, last_box

_SURROGATE = re.compile("[\ud800-\udfff]")
NAMED = 5
"""Malformed rows that an error names; the others are only counted."""
ROLES = ("system", "user", "assistant", "tool")

Turn = tuple[str, str]
"""(role, content)."""


@dataclass(frozen=True)
class Row:
    """One question as it stands in the table."""

    id: str
    prompt: str
    """The question; of a conversation its last message."""
    answer: str
    tier: str = ""
    turns: tuple[Turn, ...] = ()
    """The conversation that the prompt ends; empty for a plain text."""


class Malformed(ValueError):
    """Why a row cannot be used."""


def read_rows(records: Iterable[Record], table: DatasetConfig, origin: str) -> list[Row]:
    """The questions of a table, in order.

    Args:
        table: the columns and the answer format (resolved).
        origin: what the records come from, for messages.

    Raises:
        DataError: rows are malformed, or there are none.
    """
    rows: dict[str, Row] = {}
    complaints: list[str] = []
    for record in records:
        try:
            row = _row(record, table)
            if row.id in rows:
                raise Malformed(f": id {row.id!r} is there already")
            rows[row.id] = row
        except Malformed as problem:
            complaints.append(f"{record.place}{problem}")
    if complaints:
        raise _refused(complaints, len(rows) + len(complaints), table, origin)
    if not rows:
        raise DataError(f"prompts {origin} hold no rows", rule=_rule(table), fix="give a table with at least one row")
    return list(rows.values())


def _refused(complaints: list[str], total: int, table: DatasetConfig, origin: str) -> DataError:
    shown = "".join(f"\n  {complaint}" for complaint in complaints[:NAMED])
    more = f"\n  and {len(complaints) - NAMED} more" if len(complaints) > NAMED else ""
    return DataError(f"{len(complaints)} of {total} rows of {origin} are malformed:{shown}{more}", rule=_rule(table),
                     fix="mend these rows or leave them out; if every row is named, see the columns in the config")


def _rule(table: DatasetConfig) -> str:
    prompt, answer = table.prompt_column or "prompt", table.answer_column or "answer"
    return (f"a row has {prompt} (text, or messages) and {answer} ({table.answer_format or 'plain'}: text or a "
            f"number), and a unique {table.id_column or 'id'} if it has one")


def _row(record: Record, table: DatasetConfig) -> Row:
    if record.problem:
        raise Malformed(f" {record.problem}")
    turns = _turns(record.fields, table.prompt_column or "prompt")
    answer = _answer(record.fields, table.answer_column or "answer", table.answer_format or "plain")
    row = Row(_label(record.fields, table.id_column, "id", record.key), turns[-1][1], answer,
              _label(record.fields, table.tier_column, "tier", ""), turns if turns[0][0] else ())
    for text in (row.id, row.answer, row.tier, *(content for _, content in turns)):
        if broken := _SURROGATE.search(text):  # JSON can say it, UTF-8 cannot: no ledger, no request could hold it
            raise Malformed(f": {_short(text)} has half a character ({broken.group()!r})")
    return row


def _turns(fields: Mapping[str, Any], column: str) -> tuple[Turn, ...]:
    """The messages of a prompt; a plain text is one without a role."""
    value = _get(fields, column)
    if isinstance(value, str) and value.strip():
        return (("", value),)
    if not isinstance(value, list) or not value:
        raise Malformed(f": {column} is {_short(value)}; there are {sorted(fields)}")
    turns = tuple(_turn(message, column) for message in value)
    if turns[-1][0] != "user":
        raise Malformed(f": {column} ends with a message of {turns[-1][0]!r}, not of the user")
    return turns


def _turn(message: Any, column: str) -> Turn:
    role, content = (message.get("role"), message.get("content")) if isinstance(message, Mapping) else (None, None)
    if role not in ROLES or not isinstance(content, str) or not content.strip():
        raise Malformed(f": {column} has the message {_short(message)}, not role ({', '.join(ROLES)}) and content")
    return str(role), content


def _answer(fields: Mapping[str, Any], column: str, form: str) -> str:
    value = _get(fields, column)
    if type(value) is int or (type(value) is float and math.isfinite(value)):
        return str(int(value)) if value == value // 1 else str(value)
    if not isinstance(value, str) or not value.strip():
        raise Malformed(f": {column} is {_short(value)}; there are {sorted(fields)}")
    found = extract_answer(value, form)
    if not found:
        raise Malformed(f": {column} holds no {form} answer: ...{value[-60:]!r}")
    return found


def extract_answer(text: str, form: str) -> str | None:
    """The answer in a reference text; None if there is none.

    plain: the text. gsm8k: what follows the last `####`, without thousands separators (as the authors' own
    `extract_answer` of openai/grade-school-math). boxed: inside of the last `\\boxed{}`.
    """
    if form == "gsm8k":
        _, mark, answer = text.rpartition("####")
        return answer.strip().replace(",", "") if mark else None
    if form == "boxed":
        box = last_box(text)
        return box[len(BOX):-1].strip() if box else None
    return text


def _label(fields: Mapping[str, Any], column: str | None, usual: str, default: str) -> str:
    """Text of a column; one that the config names has to be there."""
    value = _get(fields, column or usual)
    if column and value is None:
        raise Malformed(f": {column} is missing; there are {sorted(fields)}")
    return default if value is None else str(value)


def _get(fields: Mapping[str, Any], column: str) -> Any:
    """The column, or `b` inside of `a` for `a.b`; None if it is not there."""
    if column in fields:
        return fields[column]
    value: Any = fields
    for part in column.split("."):
        value = value.get(part) if isinstance(value, Mapping) else None
    return value


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:80]}..."
