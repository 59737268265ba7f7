"""Texts of unknown making, fit for a page: of bounded length, without characters that hide or rearrange others. Pure.

Escaping is not done here: a page sets these texts as text, never as HTML.

Invariants:
- bounded: never longer than the limit and the mark that says what was left out.
- visible: control characters and the ones that change the direction of text become visible signs.
- encodable: the result is valid UTF-8.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
_PICTURES = 0x2400  # Unicode's pictures of control characters


def fit(text: str, limit: int) -> str:
    """The text, with its middle left out if it is longer than `limit` characters: answers stand at the end."""
    if len(text) > limit:
        tail = limit // 2
        text = f"{text[:limit - tail]}\n[… {len(text) - limit:,} characters left out …]\n{text[len(text) - tail:]}"
    return visible(text)


def visible(text: str) -> str:
    """The text with signs in place of characters that cannot be seen."""
    return _CONTROL.sub(lambda match: _sign(ord(match[0])), text)


def all_visible(value: Any) -> Any:
    """Every text inside of plain JSON, visible."""
    if isinstance(value, str):
        return visible(value)
    if isinstance(value, Mapping):
        return {visible(str(key)): all_visible(item) for key, item in value.items()}
    return [all_visible(item) for item in value] if isinstance(value, (list, tuple)) else value


def _sign(code: int) -> str:
    if code < 0x20:
        return chr(_PICTURES + code)
    return "␡" if code == 0x7F else "�"
