"""Where in a response an answer may stand. Pure.

Without a scope a clipped response could be paid for a guess in the middle of its thinking, which biases J(B)
upwards at small budgets; DeepScaleR therefore accepts an answer only after the closing think tag.

Invariants:
    scoped_is_part: the scoped text is a part of the response.
    bounded: it has at most MAX_CHARACTERS characters.
"""

from __future__ import annotations

import re
from typing import Literal

Scope = Literal["all", "after_think", "boxed"]

MAX_CHARACTERS = 4096
"""Longer text is hostile or lost: of free text the end is kept, a longer box is no answer."""

THINK_END = "</think>"
BOX = "\\boxed{"
_MARKS = re.compile(r"\\boxed\{|\\.|[{}]", re.DOTALL)  # an escaped brace is no brace


def scoped_text(text: str, scope: Scope) -> str | None:
    """The part of a response that may hold the answer; None if there is no such part."""
    if scope == "boxed":
        return last_box(text)
    if scope == "after_think":
        _, tag, text = text.rpartition(THINK_END)
        if not tag:
            return None
    return text[-MAX_CHARACTERS:] if text.strip() else None


def last_box(text: str) -> str | None:
    """The last complete `\\boxed{...}` with balanced braces, with its wrapping; None if there is none.

    A box that is still open (clipped) gives way to the one before it. One pass: a megabyte of open boxes is harmless.
    """
    found: tuple[int, int] | None = None
    opened: list[int | None] = []  # where each open brace's box starts; None for a plain brace
    for mark in _MARKS.finditer(text):
        if mark.group() in (BOX, "{"):
            opened.append(mark.start() if mark.group() == BOX else None)
        elif mark.group() == "}" and opened:
            start = opened.pop()
            if start is not None and mark.end() - start <= MAX_CHARACTERS and (found is None or start > found[0]):
                found = start, mark.end()
    return text[found[0]:found[1]] if found else None
