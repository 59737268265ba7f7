"""Mathematical equality by math-verify, in worker processes that are killed at a deadline.

sympy can be made to compute for ever, to recurse without end or to eat all memory, and a model's text is hostile
input; so every judgement runs in a spawned process with a memory limit, under a deadline enforced from outside
(`reward.workers`). A judgement without result is no verdict, never `wrong`. Signal alarms, which math-verify uses by
default, are switched off: in a thread they make every reward zero (verl PR #5635), and they do not interrupt C code.

    text that states the answer ─► the reference itself? right ─► hopeless? no verdict ─► judged before? ─► a worker
"""

from __future__ import annotations

import functools
import logging
import math
import re
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from siri_megatron.errors import DataError
from siri_megatron.reward.cache import SharedVerdicts
from siri_megatron.reward.extract import BOX, MAX_CHARACTERS, is_formula, is_phrase
from siri_megatron.reward.limits import hopeless
from siri_megatron.reward.notation import in_base, rewritten
from siri_megatron.reward.scope import scoped_text
from siri_megatron.reward.units import has_variables, without_unit
from siri_megatron.reward.workers import FailureLog, Limits, NoVerdict, Workers

if TYPE_CHECKING:
    from siri_megatron.config import Scope
    from siri_megatron.data.codec import TextCodec
    from siri_megatron.data.prompts import Prompt

KNOWN_PAIRS = 4096
"""Pairs of reference and answer whose verdict is remembered: at most 32 MB of text."""
_SIZING = re.compile(r"\\(?:left|right)(?![A-Za-z])")


class MathVerifier:
    """Compares with the prompt's answer.

    Args:
        scope: where the answer may stand.
    """

    def __init__(self, codec: TextCodec, scope: Scope, limits: Limits) -> None:
        self._codec, self._scope = codec, scope
        self._workers = Workers(limits, prepare_worker)
        self._known = SharedVerdicts(KNOWN_PAIRS)
        self.failures = FailureLog()

    def answer_text(self, response_ids: Sequence[int]) -> str | None:
        return scoped_text(self._codec.decode(response_ids), self._scope)

    async def judge(self, prompt: Prompt, answer_text: str) -> float:
        """1 or 0; NaN if it is hopeless, or was killed at the deadline, ran out of memory or failed in the library."""
        reference = bounded_reference(prompt)
        if same_text(reference, answer_text):
            return 1.0
        return await self._known.get((reference, answer_text),
                                     functools.partial(self._judge, reference, answer_text))

    async def _judge(self, reference: str, answer: str) -> float:
        try:
            if reason := hopeless(answer):
                raise NoVerdict("hopeless to compute", reason)
            return float(await self._workers.run(compare, reference, answer))
        except NoVerdict as failure:
            self.failures.note(failure, answer)
            return math.nan

    async def close(self) -> None:
        await self._workers.close()


def bounded_reference(prompt: Prompt) -> str:
    """The reference answer.

    Raises:
        DataError: it is longer than any answer that could be judged.
    """
    if len(prompt.answer) > MAX_CHARACTERS:
        raise DataError(f"the answer of prompt {prompt.id} has {len(prompt.answer)} characters",
                        rule=f"an answer has at most {MAX_CHARACTERS}", fix="shorten it or leave the prompt out")
    return prompt.answer


def same_text(reference: str, answer: str) -> bool:
    """Whether an answer is its reference letter by letter, its wrapping aside; most right answers are."""
    return bool(reference.strip()) and _unwrapped(reference) == _unwrapped(answer)


def _unwrapped(text: str) -> str:
    if text.startswith(BOX) and text.endswith("}") and BOX not in text[1:]:
        text = text[len(BOX):-1]
    return " ".join(_SIZING.sub("", text).strip(" \n$").split())


def prepare_worker() -> None:
    """Before the first judgement of a worker: import sympy outside of any deadline."""
    import math_verify  # noqa: F401

    logging.disable(logging.WARNING)  # math-verify warns in every process that its alarms are off


def compare(reference: str, answer: str) -> bool:
    """Whether an answer equals its reference, reference first: math-verify is not symmetric. Runs in a worker.

    An answer in which nothing can be parsed is wrong.

    Raises:
        ValueError: the reference cannot be parsed; and whatever sympy raises.
    """
    from math_verify import verify

    values = in_base(_unwrapped(reference)), in_base(_unwrapped(answer))
    if None not in values:
        return values[0] == values[1]
    variables = has_variables(reference)
    gold = _parsed(boxed(rewritten(reference)), variables)
    if not reference.strip() or not gold:
        raise ValueError(f"the reference {reference!r} cannot be parsed")
    found = _parsed(formula(answer), variables)
    return bool(found) and verify(gold, found, timeout_seconds=None, raise_on_error=True)


def _parsed(text: str, variables: bool) -> list[Any]:
    """What math-verify reads; with variables it takes no letter for a unit."""
    from math_verify import ExprExtractionConfig, LatexExtractionConfig, parse

    latex = LatexExtractionConfig()
    if variables:
        text = without_unit(text)
        latex = replace(latex, normalization_config=replace(latex.normalization_config, units=False))
    found: list[Any] = parse(text, (latex, ExprExtractionConfig()), parsing_timeout=None, raise_on_error=True)
    return found


def formula(answer: str) -> str:
    """What math-verify shall parse: a bare formula in a box, lest it takes the last number in it for the answer."""
    text = rewritten(answer)
    return boxed(text) if is_formula(text) or is_phrase(text) else text


def boxed(text: str) -> str:
    return text if BOX in text else f"{BOX}{text.strip().rstrip('.')}}}"
