"""Ways of writing that math-verify reads as something else, rewritten before it parses. Pure.

Each rule stands for a misreading of math-verify 0.9 that would give a false verdict, in either direction:
`1\\,000` is read as 0, `3 1/2` as 2, `pi/4` as i p/4, `0.\\overline{3}` and a Unicode minus as words. Applied to
reference and answer alike.

Invariants:
    plain_numbers_stay: digits, a leading minus and a decimal point are left as they are.
    same_notation_stays: what math-verify reads correctly is left as it is.
"""

from __future__ import annotations

import re

_BLANK = r"(?:\s|\\ |~)+"
_RULES = [(re.compile(pattern), replacement) for pattern, replacement in (
    (r"\x00", " "),
    (r"−", "-"),
    (r"π", r"\\pi "),
    (r"(?<![A-Za-z\\])pi(?![A-Za-z])", r"\\pi "),
    (r"√\s*(\d+)", r"\\sqrt{\1}"),
    (r"∞", r"\\infty "),
    (r"[°º]", r"^\\circ"),
    (r"×", r"\\times "),
    (r"\\\$(?=\s*\d)", ""),  # \$5
    (r"(?<=\d)\.+(?=\s*\}?\s*$)", ""),  # 7.
    (r"(?<=\d)[eE]([+-]?\d{1,3})(?![\w.])", r"\\times 10^{\1}"),  # 6.02e23
    (r"(?<=\d)(?:\\[,!;: ]|\{,\}|,\\!|[\u2009\u202f\u00a0])(?=\d{3}(?!\d))", ""),  # 1\,000  10{,}000  10,\!000
    (rf"(?:(?<![\d./^_{{])|(?<=\\boxed\{{))(\d++){_BLANK}(\d++)\s*/\s*(\d++)(?!\.\d)", r"\1\\frac{\2}{\3}"),  # 3 1/2
    (rf"(?<!\d)(\d++){_BLANK}(?=\\[dt]?frac\{{\d+\}}\{{\d+\}})", r"\1"),
)]
_REPEATING = re.compile(r"(?<![\d.])(\d{0,30})\.(\d{0,30})\\(?:overline|bar)\s*\{(\d{1,30})\}(?!\d)")
_BASED = re.compile(r"([0-9A-Za-z]{1,99})_\{?(?:\\text\s*\{)?\s*(\d{1,2})\}*")


def rewritten(text: str) -> str:
    """The text in math-verify's notation."""
    for pattern, replacement in _RULES:
        text = pattern.sub(replacement, text)
    return _REPEATING.sub(_fraction, text)


def _fraction(decimal: re.Match[str]) -> str:
    """0.1\\overline{6} = (16 - 1) / 90."""
    whole, fixed, repeating = decimal.groups()
    numerator = int(whole + fixed + repeating) - int("0" + whole + fixed)
    return rf"\frac{{{numerator}}}{{{10 ** len(fixed) * (10 ** len(repeating) - 1)}}}"


def in_base(text: str) -> int | None:
    """The value of a number that names its base, such as `1011_2`, and is nothing else; math-verify reads no base."""
    if (found := _BASED.fullmatch(text.strip())) is None or not any(map(str.isdigit, found[1])):
        return None
    try:
        return int(found[1], int(found[2]))
    except ValueError:  # no digits of that base, or none that there is
        return None
