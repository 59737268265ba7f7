"""The generated task of the tiny model: the sum of k labelled digits, modulo ten. Pure Python.

Grammar (one token a character, see `digit_tokenizer`):

    prompt    = { label digit } "|"            a3b8c2|          labels a, b, c, ... in order; k of them
    response  = { work } "A" digit             b8+3=1c2+1=3A3   then the end-of-sequence token
    work      = explicit | mental | skip | check | filler | restart
    explicit  = label digit "+" digit "=" digit      b8+3=1     6 tokens an operand: operand, running sum, result
    mental    = label digit "=" digit                b8=1       4 tokens an operand: the running sum is not restated
    skip      = label digit label digit "=" digit    b8c2=3     6 tokens for two operands
    check     = { "?" digit "+" digit "=" digit }    ?8+3=1     6 tokens an operand, redoes the step before it
    filler    = "~" digit                            ~1         2 tokens, repeats the running sum
    restart   = "A" digit "R"                        A3R        3 tokens, begins the whole chain again

A label is always followed by its own operand (in the prompt and in explicit steps alike) and a running sum always
stands at the same distance from where it is used, so two layers can learn the grammar within minutes.

The family is made for budget experiments. Harder tiers (larger k) truly need more tokens: a bare explicit chain has
6(k-1)+2 of them and the end token. The same answer can be reached redundantly (checks, fillers, restarts), tersely
(explicit only) or tersest (mental, skip: fewer tokens, harder to get right), so a model has something to compress, and
something to lose when it is compressed too far. `digit_sum_teacher` writes such responses.

Invariants:
    splits are disjoint: a problem is held out iff the CRC-32 of its operands says so, in every tier, for every seed
    deterministic: `problems` is a function of its arguments, and a smaller n gives a prefix of a larger one
    every tier is present: tiers take turns, so their counts differ by at most one
"""

from __future__ import annotations

import random
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from siri_megatron.data import generated
from siri_megatron.data.generated import Split, fresh_by_turns, held_out_by

if TYPE_CHECKING:
    from datasets import DatasetDict

LABELS = "abcdefghijkl"
ALPHABET = "0123456789" + LABELS + "+=?~RA|"
ANSWER = re.compile(r"A([0-9])\Z")


@dataclass(frozen=True)
class Problem(generated.Problem):
    """One question."""

    @property
    def operands(self) -> tuple[int, ...]:
        return tuple(int(digit) for digit in self.prompt[1::2])


def held_out(operands: tuple[int, ...]) -> bool:
    """Whether these operands belong to the evaluation split."""
    return held_out_by("-".join(map(str, operands)))


def make_problem(operands: tuple[int, ...], problem_id: str) -> Problem:
    prompt = "".join(f"{label}{digit}" for label, digit in zip(LABELS, operands, strict=False)) + "|"
    return Problem(problem_id, prompt, str(sum(operands) % 10), f"k={len(operands)}")


def draw_operands(split: Split, terms: int, rng: random.Random) -> tuple[int, ...]:
    """Uniform operands of one tier, conditioned on the split."""
    while True:
        operands = tuple(rng.randrange(10) for _ in range(terms))
        if held_out(operands) == (split == "eval"):
            return operands


def problems(split: Split, n: int, min_terms: int = 3, max_terms: int = 9, seed: int = 0) -> list[Problem]:
    """The first n problems of a split: tiers take turns, operands are distinct while the tier has fresh ones.

    Tier k=3 has only about 900 training and 100 held-out problems; a longer list repeats some of them.
    """
    rng = random.Random(f"digit_sum/{split}/{seed}")
    stream = fresh_by_turns(lambda terms: draw_operands(split, terms, rng), range(min_terms, max_terms + 1))
    return [make_problem(next(stream), f"{split}-{seed}-{index:05d}") for index in range(n)]


def extract_answer(response: str) -> str | None:
    """The digit that a response ends with (`...A3`), or None. Special tokens must already be removed."""
    found = ANSWER.search(response)
    return found.group(1) if found else None


def as_dataset(train: int = 20000, evaluation: int = 1000, min_terms: int = 3, max_terms: int = 9,
               seed: int = 0) -> DatasetDict:
    """Both splits as Hugging Face datasets with columns id, prompt, answer, tier."""
    from datasets import Dataset, DatasetDict

    sizes: dict[Split, int] = {"train": train, "eval": evaluation}
    return DatasetDict({
        split: Dataset.from_list([vars(problem) for problem in problems(split, n, min_terms, max_terms, seed)])
        for split, n in sizes.items()
    })
