"""Ways of writing that math-verify reads as something else, rewritten before it parses. Pure.

Each rule stands for a misreading of math-verify 0.9 that would give a false verdict, in either direction:
`1\\,000` is read as 0, `3 1/2` as 2, `pi/4` as i p/4, a Unicode minus as a word. Applied to reference and answer alike.

Invariants:
    plain_numbers_stay: digits, a leading minus and a decimal point are left as they are.
    same_notation_stays: what math-verify reads correctly is left as it is.
"""

from __future__ import annotations

import re

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
    (r"(?<![\d./^_{])(\d++)\s+(\d++)\s*/\s*(\d++)(?!\.\d)", r"\1\\frac{\2}{\3}"),  # 3 1/2
    (r"(?<!\d)(\d++)\s+(?=\\[dt]?frac\{\d+\}\{\d+\})", r"\1"),
)]


def rewritten(text: str) -> str:
    """The text in math-verify's notation."""
    for pattern, replacement in _RULES:
        text = pattern.sub(replacement, text)
    return text
