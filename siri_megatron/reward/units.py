"""Whether the letters of a reference are variables or a unit. Pure.

math-verify forgives units: of `5 cm` and `12m` it reads the number. In doing so it takes any of `a b c d g h l m o s t`
and many pairs behind a number or a blank for one, so that `2ab` is 2, `-16t^2+64t` loses its last t, and `3 + t`
becomes `3 +`. The reference decides: where it has variables, units are taken off here and math-verify is told of none.

Invariants:
    blank_means_unit: a letter or two right behind a number are variables, after a blank (`5 m`) a unit; `cm`, `kg` and
        the like are a unit in either case.
    words_are_no_variables: words of three letters and more, and what stands in \\text{}, never are.
"""

from __future__ import annotations

import re

from siri_megatron.reward.extract import TEXT

_COMMAND = re.compile(r"\\[A-Za-z]+")
_VARIABLE = re.compile(r"(?<![A-Za-z])[A-Za-z]{1,2}(?![A-Za-z])")
_QUANTITY = re.compile(r"[^A-Za-z=]*(?:(?<=[\d}])\s+[A-Za-z]{1,2}|(?<=[\d}#])\s*(?:[cmk]m|kg|ml|ft|hr|gm))(?![A-Za-z])"
                       r"(?:\s*/\s*[A-Za-z]+|\s*\^\s*\{?\d\}?)*[^A-Za-z0-9]*")
_LAST_TEXT = re.compile(r"(?<=[\w)}])\s*\\(?:text|mbox)\s*\{[^{}]*\}(?:\^\d|\^\{\d\})?(?=[\s.}$]*$)")


def has_variables(reference: str) -> bool:
    """Whether there are letters in it that stand for themselves."""
    bare = _COMMAND.sub("#", TEXT.sub(" ", reference))
    return _VARIABLE.search(bare) is not None and _QUANTITY.fullmatch(bare) is None


def without_unit(text: str) -> str:
    """Without a \\text{} at its end."""
    return _LAST_TEXT.sub("", text)
