"""Which text of a response states its answer, on responses as models write them; clipping; nothing is invented."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from siri_megatron.config import Scope
from siri_megatron.data.prompts import Prompt
from siri_megatron.reward.extract import (
    BOX,
    MAX_CHARACTERS,
    answer_line,
    is_formula,
    is_phrase,
    last_box,
    plain_end,
    stated_answer,
)
from siri_megatron.reward.scope import scoped_text
from siri_megatron.reward.verifier import score

MARKUP = st.lists(st.sampled_from([
    "\\boxed{", "{", "}", "\\{", "\\}", "7", "12", " ", "\n", ".", "$", "answer", "Answer:", "**Answer**: ",
    "the answer is ",
    "#### ", "</think>", "<think>", "<answer>", "</answer>", ", ", " and ", "\\frac{1}{2}", "(", ")", "\\", "é", "x"]),
    max_size=30).map("".join)
SCOPES: tuple[Scope, ...] = ("all", "after_think", "boxed")


@pytest.mark.parametrize(("response", "expected"), [
    ("The sum is 12, so the answer is 42.", "42"),
    ("Answer: 42", "42"),
    ("**Answer**: 42", "42"),
    ("**Answer:** 42", "42"),
    ("**Answer: 42**", "42"),
    ("### Final Answer\nThe final answer is $\\frac{1}{2}$. I hope it is correct.", "$\\frac{1}{2}$"),
    ("Final Answer: The final answer is $x = 3$. I hope it is correct.", "$x = 3$"),
    ("The final answer is:\n\n$$\n42\n$$\n", "$$\n42\n$$"),
    ("The answer is \\[\n\\frac{3}{4}\n\\] as claimed", "\\[\n\\frac{3}{4}\n\\]"),
    ("Step 1: ...\n#### 1,234", "1,234"),
    ("<answer> 12 </answer>", "12"),
    ("Answer: 3.5", "3.5"),
    ("Answer: 3.5. That is all.", "3.5"),
    ("Answer: (1, 2)\nWe checked 4 cases.", "(1, 2)"),
    ("The answer is 42. Let me check: 6*7 = 42, and 6*8 = 48.", "42"),
    ("Answer: 41. Wait, that is wrong.\nAnswer: 42", "42"),
    ("The answer is 42. I am sure this answer is correct", "42"),
    ("The answer to $x+1=3$ is $x=2$.", "$x=2$"),
    ("ANSWER: B", "B"),
    ("so the answer is x+1", "x+1"),
    ("The answers are 3 and 5.", "3 and 5"),
    ("Therefore \\boxed{42}.", "\\boxed{42}"),
    ("\\boxed{41}... no, \\boxed{42}", "\\boxed{42}"),
    ("\\boxed{42} is the answer: clearly", "\\boxed{42}"),
    ("Answer: 41, I mean \\boxed{42}", "\\boxed{42}"),
    ("\\boxed{\\frac{1}{\\sqrt{2}}}", "\\boxed{\\frac{1}{\\sqrt{2}}}"),
    ("\\boxed{\\{1, 2\\}}", "\\boxed{\\{1, 2\\}}"),
    ("$\\boxed{3}$ and $\\boxed{5}$", "\\boxed{3}$ and $\\boxed{5}"),
    ("\\boxed{3}, \\boxed{5}, or \\boxed{7}", "\\boxed{3}, \\boxed{5}, or \\boxed{7}"),
    ("\\boxed{3} but then \\boxed{5}", "\\boxed{5}"),
    ("\\boxed{42} and so \\boxed{4", "\\boxed{42}"),
    ("the answer is 42 \\boxed{4", "the answer is 42 "),
    ("so \\boxed{\\frac{7}{1}", "so "),
    ("\\boxed{7", None),
    ("We get 6*7 = 42", "We get 6*7 = 42"),
    ("x = 42", "x = 42"),
    ("", None),
    (" \n\t", None),
])
def test_stated_answer(response: str, expected: str | None) -> None:
    assert stated_answer(response) == expected


@pytest.mark.parametrize(("response", "expected"), [
    ("<think>it is 41 or \\boxed{41}</think> \\boxed{42}", "\\boxed{42}"),
    ("<think>it is \\boxed{42}</think> so", " so"),
    ("<think>it is \\boxed{42}", None),
    ("<think>it is \\boxed{42}</thin", None),
    ("<think>a</think> \\boxed{41} <think>b</think> Answer: 42", "42"),
    ("\\boxed{42}</think>", None),
    ("</think></think>7", "7"),
    ("the answer is 7</think>\n\n", None),
])
def test_thinking_does_not_count(response: str, expected: str | None) -> None:
    assert scoped_text(response, "after_think") == expected


@given(MARKUP)
def test_stated_is_part(text: str) -> None:
    for part in (stated_answer(text), last_box(text), answer_line(text), plain_end(text)):
        assert part is None or (part in text and part.strip())


@given(MARKUP)
def test_open_box_is_no_answer(text: str) -> None:
    box, line = last_box(text), answer_line(text)
    assert line is None or BOX not in line
    stated = stated_answer(text)
    assert box or stated is None or BOX not in stated
    if box:
        bare = re.sub(r"\\.", "", box.replace(BOX, "{"), flags=re.DOTALL)
        assert bare.count("{") == bare.count("}")


@given(MARKUP, MARKUP)
def test_thinking_never_matters(thought: str, said: str) -> None:
    """Whatever stands before the last closing tag."""
    assert scoped_text(thought + "</think>" + said, "after_think") == scoped_text("</think>" + said, "after_think")


@pytest.mark.parametrize("unit", ["the answer is 8 ", "\\boxed{8} and ", "\\boxed{8", "Answer: ", "(", "x"])
def test_bounded(unit: str) -> None:
    stated = stated_answer(unit * 20_000)
    assert stated is None or len(stated) <= MAX_CHARACTERS


class Characters:
    """A verifier whose tokens are characters and whose judgement is the text itself, as a number in [0, 1)."""

    def __init__(self, scope: Scope) -> None:
        self._scope = scope

    def answer_text(self, response_ids: Sequence[int]) -> str | None:
        return scoped_text("".join(map(chr, response_ids)), self._scope)

    async def judge(self, prompt: Prompt, answer_text: str) -> float:
        return (hash(answer_text) % 1000) / 1000

    async def close(self) -> None: ...


@given(MARKUP, MARKUP, st.sampled_from(SCOPES), st.integers(1, 40), st.sets(st.integers(1, 60), max_size=4))
def test_what_follows_the_clip_never_matters(text: str, after: str, scope: Scope, cap: int, grid: set[int]) -> None:
    clipped = text[:cap].ljust(cap)  # exactly cap tokens, so that the cap is where `after` begins

    def rewards(response: str) -> tuple[float, dict[int, float]]:
        scored = asyncio.run(score(Characters(scope), Prompt("p", "?", (1,), "7"), list(map(ord, response)), cap,
                                   sorted(grid), (0,)))
        return scored.reward, scored.budgets

    assert rewards(clipped + after) == rewards(clipped)


def test_what_follows_the_clip_does_matter_without_one() -> None:
    """Negative control of the property above."""
    whole, cut = (scoped_text(text, "all") for text in ("Answer: 42", "Answer: 4"))
    assert whole != cut


@pytest.mark.parametrize(("text", "expected"), [
    ("x+1", True), ("\\frac{\\sqrt{3}}{2}", True), ("5\\text{ apples}", True), ("sin x + cos y", True),
    ("(1, 2)", True),
    ("x = 5 or x = 7", True), ("sqrt(3)/2", True), ("B", True), ("12 apples", False), ("so it is 7", False),
    ("$x$", False), ("\\(x\\)", False), ("1\n2", False)])
def test_is_formula(text: str, expected: bool) -> None:
    assert is_formula(text) == expected


def test_is_phrase() -> None:
    assert is_phrase("no solution")
    assert not any(map(is_phrase, ("no solution for x = 3", "", "$x$", "a" * 41)))
