"""Where in a response an answer may stand. Pure.

Without a scope a clipped response could be paid for a guess in the middle of its thinking, which biases J(B)
upwards at small budgets; DeepScaleR therefore accepts an answer only after the closing think tag.

Invariants:
    scoped_is_part: the scoped text is a part of the response.
    bounded: it has at most MAX_CHARACTERS characters.
    thinking_does_not_count: under after_think only what follows the last closing tag decides; without one, nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from siri_megatron.reward.extract import last_box, stated_answer

if TYPE_CHECKING:
    from siri_megatron.config import Scope

THINK_END = "</think>"


def scoped_text(text: str, scope: Scope) -> str | None:
    """The part of a response that states its answer; None if there is no such part."""
    if scope == "boxed":
        return last_box(text)
    if scope == "after_think":
        _, tag, text = text.rpartition(THINK_END)
        if not tag:
            return None
    return stated_answer(text)
