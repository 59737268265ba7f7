"""Where an answer may stand."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from siri_megatron.config import Scope
from siri_megatron.reward.extract import MAX_CHARACTERS, last_box
from siri_megatron.reward.scope import scoped_text


@pytest.mark.parametrize(("text", "scope", "expected"), [
    ("is 7", "all", "is 7"),
    ("  ", "all", None),
    ("3? </think> 7", "after_think", " 7"),
    ("3? it is 7", "after_think", None),
    ("a</think>b</think>7", "after_think", "7"),
    (r"so \boxed{7}.", "boxed", r"\boxed{7}"),
    ("so 7", "boxed", None),
    (r"\boxed{1} no \boxed{\frac{1}{2}} yes", "boxed", r"\boxed{\frac{1}{2}}"),
    (r"\boxed{1} no \boxed{\frac{1}{", "boxed", r"\boxed{1}"),
    (r"\boxed{\{1, 2\}}", "boxed", r"\boxed{\{1, 2\}}"),
    (r"{ } } \boxed{x", "boxed", None),
    (r"\boxed{a \boxed{b}}", "boxed", r"\boxed{b}"),
])
def test_scoped_text(text: str, scope: Scope, expected: str | None) -> None:
    assert scoped_text(text, scope) == expected


@given(st.text(alphabet="\\boxed{}1 a<think/>", max_size=60), st.sampled_from(["all", "after_think", "boxed"]))
def test_scoped_is_part(text: str, scope: Scope) -> None:
    part = scoped_text(text, scope)
    assert part is None or part in text


@pytest.mark.parametrize("scope", ["all", "after_think", "boxed"])
def test_bounded(scope: Scope) -> None:
    for text in ("</think>" + "9" * 10**6, "\\boxed{" + "9" * 10**6 + "}", "\\boxed{" * 10**5, "{" * 10**6):
        part = scoped_text(text, scope)
        assert part is None or len(part) <= MAX_CHARACTERS


@given(st.text(alphabet="{}x", max_size=20))
def test_boxes_found_are_balanced(inside: str) -> None:
    """Oracle: cut at the first place where a plain count of braces returns to zero."""
    depth, end = 1, None
    for at, character in enumerate(inside):
        depth += {"{": 1, "}": -1}.get(character, 0)
        if depth == 0:
            end = at
            break
    expected = None if end is None else "\\boxed{" + inside[:end + 1]
    assert last_box("\\boxed{" + inside) == expected
