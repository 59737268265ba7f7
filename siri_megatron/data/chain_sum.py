"""A generated task in plain arithmetic: a number and named changes to it, such as `47a+8b-3c+9=`. Pure Python.

Grammar (one token a character; T is a named signed digit, V a value of two digits, c the column of the units):

    prompt    = V { T } "="                     47a+8b-3c+9=      k numbers in all; names a, b, c, ... in order
    response  = V { work } "A" V                47a+8=55b-3=52c+9=61A61   then the end-of-sequence token
    work      = explicit | mental | skip | check | filler | restart
    explicit  = T ":" c ":" V                   a+8:7+8=15:55     13 tokens: the units first, so the carry is known
    mental    = T "=" V                         a+8=55            6 tokens: the tens come first, the carry is foreseen
    skip      = T T "=" V                       a+8b-3=52         9 tokens for two changes
    check     = { "?" c ":" V }                 ?7+8=15:55        10 tokens a change, redoes the step before it
    filler    = "~" V                           ~55               3 tokens, repeats the value
    restart   = "A" V "R" V                     A61R47            begins the whole chain again
    c         = d "+" d "=" n | n "-" d "=" d   7+8=15, 12-8=4    a borrowed ten stands before the minuend

Without the names it is the `chain_sum` of reasoning-gym. They are there because a model of this size did not learn
from two million tokens to find the next change by the one done last. Against `digit_sum`: subtraction beside addition,
carries and borrows, and answers of two digits.

All values of a question lie in 10..99. A wrong step may lead out of that: values are then written modulo 100 in two
digits (`06`). Harder tiers (larger k) truly need more tokens: a bare mental chain has 6(k-1)+5 of them, an explicit one
about 13(k-1)+5, the end token not counted.

Invariants:
    splits are disjoint: a question is held out iff the CRC-32 of its text says so, in every tier, for every seed
    deterministic: `problems` is a function of its arguments, and a smaller n gives a prefix of a larger one
    every tier is present: tiers take turns, so their counts differ by at most one
    two digits: every value on the way to the answer has two digits
"""

from __future__ import annotations

import random
from itertools import accumulate

from siri_megatron.data.generated import Problem, Split, fresh_by_turns, held_out_by

LABELS = "abcdefghijk"
ALPHABET = "0123456789" + LABELS + "+-=:?~RA"
TERMS = (*range(-9, 0), *range(1, 10))
LOWEST, HIGHEST = 10, 99

Chain = tuple[int, ...]
"""The first number, then the changes: (47, 8, -3)."""


def question(chain: Chain) -> str:
    return f"{chain[0]}{named(LABELS, chain[1:])}="


def named(labels: str, terms: Chain) -> str:
    return "".join(f"{label}{term:+d}" for label, term in zip(labels, terms, strict=False))


def answer(chain: Chain) -> str:
    return str(sum(chain))


def held_out(chain: Chain) -> bool:
    """Whether this chain belongs to the evaluation split."""
    return held_out_by(question(chain))


def draw_chain(split: Split, numbers: int, rng: random.Random) -> Chain:
    """A uniform chain of so many numbers, conditioned on the split and on two digits all the way."""
    while True:
        chain = (rng.randint(LOWEST, HIGHEST), *rng.choices(TERMS, k=numbers - 1))
        if all(LOWEST <= value <= HIGHEST for value in accumulate(chain)) and held_out(chain) == (split == "eval"):
            return chain


def problems(split: Split, n: int, min_terms: int = 2, max_terms: int = 7, seed: int = 0) -> list[Problem]:
    """The first n problems of a split: tiers take turns, chains are distinct while the tier has fresh ones.

    Tier k=2 has only about 1,370 training and 150 held-out problems; a longer list repeats some of them.
    """
    rng = random.Random(f"chain_sum/{split}/{seed}")
    stream = fresh_by_turns(lambda numbers: draw_chain(split, numbers, rng), range(min_terms, max_terms + 1))
    return [_problem(next(stream), f"{split}-{seed}-{index:05d}") for index in range(n)]


def _problem(chain: Chain, problem_id: str) -> Problem:
    return Problem(problem_id, question(chain), answer(chain), f"k={len(chain)}")
