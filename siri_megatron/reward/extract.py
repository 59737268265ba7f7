"""Which text of a response states its answer: the last box, the last final-answer line, or the end of it. Pure.

A box goes before a line, and a line before plain text: the more explicit statement counts, the last of its kind.

Invariants:
    stated_is_part: what is found is a part of the text.
    bounded: it has at most MAX_CHARACTERS characters.
    open_box_is_no_answer: of a box that is still open (clipped) nothing is found, by whatever way.
"""

from __future__ import annotations

import re

MAX_CHARACTERS = 4096
"""A longer box is no answer."""
LINE_CHARACTERS = 512
"""Of a longer final-answer line the beginning counts."""
PLAIN_CHARACTERS = 1024
"""Of plain text only so much of its end is searched."""
PHRASE_CHARACTERS = 40

BOX = "\\boxed{"
_MARKS = re.compile(r"\\boxed\{|\\.|[{}]", re.DOTALL)  # an escaped brace is no brace
_BETWEEN_BOXES = re.compile(r"[\s$]*(?:,|;|(?:,\s*)?\b(?:and|or)\b)[\s$]*")
_ANSWER = re.compile(  # begins with letters, not with a flag or a look-behind: five times faster over long texts
    r"(?P<colon>\#{4}[ \t]+"  # GSM8K's "#### 42"
    r"|<answer>"
    r"|(?:answer|Answer|ANSWER)[sS]?\b(?:\s{0,9}=|[^\n.:：<]{0,60}?[:：]))[:*_\s]*"
    r"|(?:answer|Answer|ANSWER)[sS]?\b[^\n.:：<]{0,60}?\b(?:is|are|IS|ARE)\b[:*_\s]*")
_LINE_END = re.compile(r"</answer>|\n|\.(?=[\s*]|$)|$")
_DISPLAYED = {"$$": "$$", "\\[": "\\]"}
_WORDS = re.compile(
    r"(?<![A-Za-z\\])(?!(?:arc)?(?:sin|cos|tan|cot|sec|csc)\b|(?:sqrt|log|exp|min|max|gcd|lcm|and)\b)"
    r"(?:[A-Za-z]{3,}|(?:am|an|as|at|be|by|do|if|in|is|it|my|no|of|on|so|to|up|we)(?![A-Za-z]))", re.IGNORECASE)
_PHRASE = re.compile(r"[A-Za-z][A-Za-z' -]*")
TEXT = re.compile(r"\\(?:text|mathrm|textbf|mbox|operatorname|mathbf)\s*\{[^{}]*\}|\\(?:begin|end)\s*\{[^{}]*\}")


def stated_answer(text: str) -> str | None:
    """The part of a text that states its answer; None if the text is blank."""
    return last_box(text) or answer_line(text) or plain_end(text.partition(BOX)[0])


def last_box(text: str) -> str | None:
    """The last complete `\\boxed{...}` with balanced braces, with its wrapping; None if there is none.

    Boxes that only a comma, `and` or `or` parts are one answer. A box that is still open (clipped) gives way to the one
    before it. One pass: a megabyte of open boxes is harmless.
    """
    found: tuple[int, int] | None = None
    opened: list[int | None] = []  # where each open brace's box starts; None for a plain brace
    first = text.find(BOX)
    for mark in _MARKS.finditer(text, first) if first >= 0 else ():
        if mark.group() in (BOX, "{"):
            opened.append(mark.start() if mark.group() == BOX else None)
        elif mark.group() == "}" and opened:
            start = opened.pop()
            if start is not None and mark.end() - start <= MAX_CHARACTERS and (found is None or start > found[0]):
                found = _joined(text, found, start, mark.end()), mark.end()
    return text[found[0]:found[1]] if found else None


def _joined(text: str, before: tuple[int, int] | None, start: int, end: int) -> int:
    """Where the answer begins whose last box begins at `start`."""
    if before and end - before[0] <= MAX_CHARACTERS and _BETWEEN_BOXES.fullmatch(text, before[1], start):
        return before[0]
    return start


def answer_line(text: str) -> str | None:
    """What the last final-answer line says ("Answer: 42", "**Answer:** 42", "the answer is 42.", "#### 42").

    What follows a mere `is` counts only if it looks like an answer ("the answer is correct" states none).
    """
    said = None
    for mark in _ANSWER.finditer(text):
        line = text[mark.end():_end_of_line(text, mark.end())].strip(" \t*_")
        if line and BOX not in line and (mark["colon"] or _looks_stated(line)):
            said = line
    return said


def _end_of_line(text: str, start: int) -> int:
    """The end of the line, sentence or answer tag; displayed formulas may have several lines."""
    close = _DISPLAYED.get(text[start:start + 2])
    if close:
        end = text.find(close, start + 2, start + LINE_CHARACTERS)
        return start if end < 0 else end + len(close)
    found = _LINE_END.search(text, start, start + LINE_CHARACTERS)  # bounded: a megabyte of answers is one pass
    return found.start() if found else start


def _looks_stated(line: str) -> bool:
    return any(character.isdigit() or character in "$\\" for character in line) or is_formula(line)


def is_formula(text: str) -> bool:
    """Whether a text is one formula without its own delimiters, and not prose around one."""
    return not any(mark in text for mark in ("$", "\\(", "\\[", "\n")) and not _WORDS.search(TEXT.sub("", text))


def is_phrase(text: str) -> bool:
    """Whether a text is a few words without number or formula: `east`, `no solution`."""
    return len(text) <= PHRASE_CHARACTERS and _PHRASE.fullmatch(text) is not None


def plain_end(text: str) -> str | None:
    """The end of a text, cut at a blank where there is one."""
    end = text[-PLAIN_CHARACTERS:]
    if len(text) > PLAIN_CHARACTERS:
        end = end[end.find(" ") + 1:]
    return end if end.strip() else None
