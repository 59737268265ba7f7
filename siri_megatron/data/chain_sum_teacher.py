"""A synthetic teacher for the chain task: it writes noisy, redundant reasoning. Pure Python.

A step applies one or two changes to the running value in one of three forms (`chain_sum`), and slips with the form's
probability: by one or two, or by a ten (a carry forgotten or made up). An explicit step that slips by one or two has a
wrong column, one that slips by a ten has a right one. A step may be checked, column by column; checks rarely slip.
As long as the results of a step do not agree by majority, another check follows; the teacher goes on with the majority
(and states it, if there was a disagreement). Fillers repeat the value; a restart redoes the whole chain, and once
more if the two answers differ. Over k = 2..7:

    preset   right   tokens   over 160 tokens   right at k=2 / k=7
    clean     1.00       56               2 %          1.00 / 1.00
    noisy     0.56       62               3 %          0.80 / 0.37

Invariants:
    well-formed: every response follows the grammar of `chain_sum` and ends with an answer
    a teacher without slips is always right
    columns agree: the result of an explicit step has the units of its column
    deterministic: a response is a function of the chain, the teacher and the state of the generator
"""

from __future__ import annotations

import random

from siri_megatron.data.chain_sum import LABELS, Chain, named
from siri_megatron.data.teaching import Form, Slips, Style, Teacher, settle, walk, with_restarts

SLIPS_BY = (-2, -1, 1, 2, -10, 10)

VERBOSE_STYLES = (
    Style(weight=0.50, check=0.35, filler=0.30, mix=(0.85, 0.12, 0.03), restart=0.08),
    Style(weight=0.30, check=0.20, filler=0.15, mix=(0.65, 0.27, 0.08), restart=0.04),
    Style(weight=0.20, check=0.04, filler=0.04, mix=(0.25, 0.55, 0.20), restart=0.02),
)

PRESETS: dict[str, Teacher] = {
    "clean": Teacher(VERBOSE_STYLES),
    "noisy": Teacher(VERBOSE_STYLES, Slips(explicit=0.21, mental=0.30, skip=0.40, check=0.04)),
}


def respond(chain: Chain, teacher: Teacher, rng: random.Random) -> str:
    """One response without the end token: first number, steps, perhaps restarts, answer."""
    style = teacher.style(rng)
    return with_restarts(lambda: _chain(chain, style, teacher.slips, rng), style, rng)


def _chain(chain: Chain, style: Style, slips: Slips, rng: random.Random) -> tuple[str, str]:
    """The first number and all steps: (text, final value)."""
    def step(form: Form, value: int, at: int, end: int) -> tuple[str, int]:
        return _step(form, value, LABELS[at - 1:end - 1], chain[at:end], style, slips, rng)

    text, value = walk(chain[0], len(chain), step, style, rng)
    return _two(chain[0]) + text, _two(value)


def _step(form: Form, value: int, labels: str, terms: Chain, style: Style, slips: Slips,
          rng: random.Random) -> tuple[str, int]:
    """One step with its checks and fillers: (text, the value that the chain goes on with)."""
    text = named(labels, terms)
    if form == "explicit":
        worked, result = _by_columns(value, terms[0], slips.explicit, rng)
        text += f":{worked}"
    else:
        result = (value + sum(terms) + _slip(SLIPS_BY, slips.of(form), rng)) % 100
        text += f"={_two(result)}"
    checked, settled = settle(result, lambda: _check(value, terms, slips.check, rng), _two, style, rng)
    return text + checked, settled


def _check(value: int, terms: Chain, slip: float, rng: random.Random) -> tuple[str, int]:
    text = ""
    for term in terms:
        worked, value = _by_columns(value, term, slip, rng)
        text += f"?{worked}"
    return text, value


def _by_columns(value: int, term: int, slip: float, rng: random.Random) -> tuple[str, int]:
    """The units column, then the result: `7+8=15:55`."""
    units, digit = value % 10, abs(term)
    borrowed = 10 if term < 0 and units < digit else 0
    column = units + borrowed + term
    by = _slip([by for by in SLIPS_BY if abs(by) == 10 or 0 <= column + by <= (9 if term < 0 else 19)], slip, rng)
    result = (value + term + by) % 100
    work = f"{units + borrowed}{'-' if term < 0 else '+'}{digit}={column + (by if abs(by) < 10 else 0)}"
    return f"{work}:{_two(result)}", result


def _slip(by: tuple[int, ...] | list[int], probability: float, rng: random.Random) -> int:
    return rng.choice(by) if rng.random() < probability else 0


def _two(value: int) -> str:
    return f"{value:02d}"
