"""A synthetic teacher for the digit-sum task: it writes noisy, redundant reasoning. Pure Python.

A step adds one or two operands to the running sum in one of three forms (explicit, mental, skip) and slips with the
form's probability. A step may be checked; checks rarely slip. As long as the results of a step do not agree by
majority, another check follows; the teacher goes on with the majority (and states it, if there was a disagreement).
Fillers repeat the running sum; a restart redoes the whole chain, and once more if the two answers differ.

So a response is right unless an unchecked slip survives: the warm-started model inherits a known error rate that
reinforcement learning can remove, and a known verbosity that a budget can remove. Over k = 3..9:

    preset   right   tokens   over 128 tokens   right at k=3 / k=9
    clean     1.00       58               4 %          1.00 / 1.00
    noisy     0.57       66               7 %          0.78 / 0.43

Invariants:
    well-formed: every response follows the grammar of `digit_sum` and ends with an answer
    a teacher without slips is always right
    deterministic: a response is a function of the operands, the teacher and the state of the generator
"""

from __future__ import annotations

import random

from siri_megatron.data.digit_sum import LABELS
from siri_megatron.data.teaching import Form, Slips, Style, Teacher, settle, walk, with_restarts

SLIPS_BY = (1, 2, 3, 7, 8, 9)  # a slip is a near miss, modulo ten

VERBOSE_STYLES = (
    Style(weight=0.55, check=0.65, filler=0.45, mix=(0.90, 0.07, 0.03), restart=0.10),
    Style(weight=0.25, check=0.40, filler=0.25, mix=(0.70, 0.22, 0.08), restart=0.05),
    Style(weight=0.20, check=0.05, filler=0.05, mix=(0.30, 0.50, 0.20), restart=0.02),
)

PRESETS: dict[str, Teacher] = {
    "clean": Teacher(VERBOSE_STYLES),
    "noisy": Teacher(VERBOSE_STYLES, Slips(explicit=0.21, mental=0.30, skip=0.45, check=0.04)),
}


def respond(operands: tuple[int, ...], teacher: Teacher, rng: random.Random) -> str:
    """One response without the end token: chain, perhaps restarts, answer."""
    style = teacher.style(rng)
    return with_restarts(lambda: _chain(operands, style, teacher.slips, rng), style, rng)


def _chain(operands: tuple[int, ...], style: Style, slips: Slips, rng: random.Random) -> tuple[str, str]:
    """All steps from the second operand on: (text, final running sum)."""
    def step(form: Form, value: int, at: int, end: int) -> tuple[str, int]:
        return _step(form, LABELS[at:end], value, operands[at:end], style, slips, rng)

    text, value = walk(operands[0], len(operands), step, style, rng)
    return text, str(value)


def _step(form: Form, labels: str, value: int, operands: tuple[int, ...], style: Style, slips: Slips,
          rng: random.Random) -> tuple[str, int]:
    """One step with its checks and fillers: (text, the value that the chain goes on with)."""
    result = _slip(value + sum(operands), slips.of(form), rng)
    terms = "".join(f"{label}{operand}" for label, operand in zip(labels, operands, strict=True))
    text = terms + (f"+{value}" if form == "explicit" else "") + f"={result}"
    checked, settled = settle(result, lambda: _check(value, operands, slips.check, rng), str, style, rng)
    return text + checked, settled


def _check(value: int, operands: tuple[int, ...], slip: float, rng: random.Random) -> tuple[str, int]:
    text = ""
    for operand in operands:
        result = _slip(value + operand, slip, rng)
        text, value = f"{text}?{operand}+{value}={result}", result
    return text, value


def _slip(value: int, probability: float, rng: random.Random) -> int:
    return (value + (rng.choice(SLIPS_BY) if rng.random() < probability else 0)) % 10
