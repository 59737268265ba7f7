"""The generated families by name: questions, teacher and tokenizer of each, in one shape. Pure.

A family's content is an opaque tuple of numbers: `draw` makes one of a tier (its number of terms), `question` writes it
down, `respond` has a preset of the teacher answer it.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from siri_megatron.config.data import FamilyName
from siri_megatron.data import chain_sum, chain_sum_teacher, digit_sum, digit_sum_teacher, digit_tokenizer
from siri_megatron.data.character_tokenizer import CharacterTokenizer
from siri_megatron.data.generated import Problem, Split

Content = tuple[int, ...]


@dataclass(frozen=True)
class Family:
    """One generated task.

    Attributes:
        weighted: characters of responses that must be copied or computed; the others are mere style.
        problems: the first n problems of a split, tiers min_terms..max_terms taking turns.
    """

    tokenizer: CharacterTokenizer
    weighted: frozenset[str]
    problems: Callable[[Split, int, int, int], Sequence[Problem]]
    draw: Callable[[Split, int, random.Random], Content]
    question: Callable[[Content], str]
    respond: Callable[[Content, str, random.Random], str]


FAMILIES: dict[FamilyName, Family] = {
    "digit_sum": Family(
        digit_tokenizer.TOKENIZER, frozenset("0123456789A" + digit_sum.LABELS), digit_sum.problems,
        digit_sum.draw_operands, lambda operands: digit_sum.make_problem(operands, "").prompt,
        lambda operands, preset, rng: digit_sum_teacher.respond(operands, digit_sum_teacher.PRESETS[preset], rng)),
    "chain_sum": Family(
        CharacterTokenizer(chain_sum.ALPHABET), frozenset("0123456789A+-" + chain_sum.LABELS), chain_sum.problems,
        chain_sum.draw_chain, chain_sum.question,
        lambda chain, preset, rng: chain_sum_teacher.respond(chain, chain_sum_teacher.PRESETS[preset], rng)),
}
