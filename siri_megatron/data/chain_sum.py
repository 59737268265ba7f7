"""A generated task in plain arithmetic: chains of sums and differences such as `47+8-3+9=`. Pure Python.

Grammar (one token a character; T is a signed digit, V a value of two digits, c the column of the units):

    prompt    = V { T } "="                    47+8-3+9=          k numbers in all, as in reasoning-gym's chain_sum
    response  = V { work } "A" V               47+8=55-3=52+9=61A61   then the end-of-sequence token
    work      = explicit | mental | skip | check | filler | restart
    explicit  = T ":" c ":" T "=" V            +8:7+8=15:+8=55    15 tokens: the units first, so the carry is known
    mental    = T "=" V                        +8=55              5 tokens: the tens come first, the carry is foreseen
    skip      = T T "=" V                      +8-3=52            7 tokens for two terms
    check     = { "?" c ":" T "=" V }          ?7+8=15:+8=55      13 tokens a term, redoes the step before it
    filler    = "~" T "=" V                    ~+8=55             6 tokens, repeats the last term and the value
    restart   = "A" V "R" V                    A61R47             begins the whole chain again
    c         = d "+" d "=" n | n "-" d "=" d  7+8=15, 12-8=4     a borrowed ten stands before the minuend

Against `digit_sum`: subtraction beside addition, carries and borrows, answers of two digits, and no labels. Which term
is next must be found by the one done last, so the signed terms of a question differ; and every form ends with a term
and the running value, so that what is looked up stands at one distance.

All values of a question lie in 10..99. A wrong step may lead out of that: values are then written modulo 100 in two
digits (`06`). Harder tiers (larger k) truly need more tokens: a bare mental chain has 5(k-1)+5 of them, an explicit one
about 15(k-1)+5, the end token not counted.

Invariants:
    splits are disjoint: a question is held out iff the CRC-32 of its text says so, in every tier, for every seed
    deterministic: `problems` is a function of its arguments, and a smaller n gives a prefix of a larger one
    every tier is present: tiers take turns, so their counts differ by at most one
    unambiguous: the signed terms of a question are distinct; every value on the way has two digits
"""

from __future__ import annotations

import random
from itertools import accumulate

from siri_megatron.data.generated import Problem, Split, fresh_by_turns, held_out_by

ALPHABET = "0123456789+-=:?~RA"
TERMS = (*range(-9, 0), *range(1, 10))
LOWEST, HIGHEST = 10, 99

Chain = tuple[int, ...]
"""The first number, then the signed terms: (47, 8, -3)."""


def question(chain: Chain) -> str:
    return f"{chain[0]}" + "".join(f"{term:+d}" for term in chain[1:]) + "="


def answer(chain: Chain) -> str:
    return str(sum(chain))


def held_out(chain: Chain) -> bool:
    """Whether this chain belongs to the evaluation split."""
    return held_out_by(question(chain))


def draw_chain(split: Split, numbers: int, rng: random.Random) -> Chain:
    """A uniform chain of so many numbers, conditioned on the split and on two digits all the way."""
    while True:
        chain = (rng.randint(LOWEST, HIGHEST), *rng.sample(TERMS, numbers - 1))
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
