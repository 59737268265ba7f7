"""Texts on which computing is hopeless, refused before sympy sees them. Pure.

Only a saving: what passes is still judged under a deadline and a memory limit. A refusal is no verdict (`failed`):
nobody can say what such a text is equal to.

Invariants:
    legitimate_pass: what people and models write as an answer passes (tests/reward/test_limits.py holds the list).
    cheap: it takes milliseconds for the longest text that may be stated as an answer.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable

MAX_LENGTH = 1024
"""Characters: the parser takes seconds beyond."""
MAX_NESTING = 20
"""Open brackets within each other: the parser's time doubles with each, and is a second or more from about here on."""
MAX_REPEATS = 9
"""The same sign over and over in one line: `9!!!!!!!!!!!!!!`, `||||||||||||||`."""
MAX_TOWER = 4
"""Exponents within exponents."""
MAX_EXPONENT = 10**6
"""Of a number: 2^{1000000} has 300,000 digits."""
_OPEN, _CLOSE = "([{", ")]}"
_NUMBER = r"(?:\{\s*(\d{1,9}|#)\s*\}|\(\s*(\d{1,9}|#)\s*\)|(\d{1,9}|#))"  # `#` stands for a number above 10^6
_POWER = re.compile(rf"{_NUMBER}\s*(?:\^|\*\*)\s*{_NUMBER}(?![\d.])(?!\s*(?:\^|\*\*|!))")
_FACTORIAL = re.compile(rf"{_NUMBER}(?:\s*!)+(?!=)")
_CHAIN = re.compile(r"(?:(?:\^|\*\*)\s*[\w.#]+\s*)+")
_REPEATED = re.compile(rf"([-+|!=<>*/~'^_])(?:\s*\1){{{MAX_REPEATS},}}")
_ASTRONOMICAL = re.compile(r"(?:\^|\*\*)\s*[{(]?\s*-?\s*(?:#|\d{8,})|(?:#|(?<!\d)\d{6,}+)[\s)}]*!(?!=)"
                           r"|\\[dt]?binom\s*\{[^{}\d]*(?:#|\d{6,})")


def hopeless(text: str) -> str | None:
    """Why no verdict about a text can be computed; None if it may be tried."""
    if len(text) > MAX_LENGTH:
        return f"{len(text)} characters"
    if "\n" not in text and (signs := _REPEATED.search(text)):
        return f"{signs[1]} again and again"
    if (depth := nesting(text)) > MAX_NESTING:
        return f"brackets nested {depth} deep"
    if (height := tower(text)) > MAX_TOWER:
        return f"exponents nested {height} deep"
    return "a power or factorial of astronomical size" if astronomical(text) else None


def nesting(text: str) -> int:
    """Deepest nesting of brackets of any kind, matched or not."""
    depth = deepest = 0
    for character in text:
        if character in _OPEN:
            depth += 1
            deepest = max(deepest, depth)
        elif character in _CLOSE:
            depth = max(0, depth - 1)
    return deepest


def tower(text: str) -> int:
    """How many exponents stand within or on top of each other."""
    height, highest, brackets = 0, 0, []
    for at, character in enumerate(text):
        if character in _OPEN:
            brackets.append(text[max(0, at - 8):at].rstrip().endswith(("^", "**")))
            height += brackets[-1]
            highest = max(highest, height)
        elif character in _CLOSE and brackets:
            height -= brackets.pop()
    chains = (len(re.findall(r"\^|\*\*", chain.group())) for chain in _CHAIN.finditer(text))
    return max(highest, max(chains, default=0))


def astronomical(text: str) -> bool:
    """Whether a number in it is too large to be computed with; found by working out its powers from the inside."""
    text = text.replace("#", " ")
    while not _ASTRONOMICAL.search(text):
        reduced = _FACTORIAL.sub(_factorial, _POWER.sub(_power, text))
        if reduced == text:
            return False
        text = reduced
    return True


def _power(match: re.Match[str]) -> str:
    base, exponent = (value for value in match.groups() if value is not None)
    if exponent == "#" or int(exponent) > MAX_EXPONENT:
        return f"{base}^#"
    if base == "#":
        return "#" if int(exponent) else "1"
    return _sized(int(exponent) * math.log2(max(1, int(base))), lambda: int(base) ** int(exponent))


def _factorial(match: re.Match[str]) -> str:
    number = next(value for value in match.groups() if value is not None)
    if number == "#" or len(number) > 5:
        return f"{number}!"
    return _sized(math.lgamma(int(number) + 1) / math.log(2), lambda: math.factorial(int(number)))


def _sized(bits: float, value: Callable[[], int]) -> str:
    """The number itself if it could be an exponent, else the mark of a large one."""
    return "#" if bits > math.log2(MAX_EXPONENT) else str(value())
