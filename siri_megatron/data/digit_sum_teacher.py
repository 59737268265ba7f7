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
from collections import Counter
from dataclasses import dataclass
from typing import Literal

from siri_megatron.data.digit_sum import LABELS

Form = Literal["explicit", "mental", "skip"]
FORMS: tuple[Form, ...] = ("explicit", "mental", "skip")
SLIPS_BY = (1, 2, 3, 7, 8, 9)  # a slip is a near miss, modulo ten
MAX_RESULTS = 4  # a step is done at most so often, checks included
MAX_FILLERS = 3


@dataclass(frozen=True)
class Slips:
    """Probability of a wrong result, by the form of the step."""

    explicit: float = 0.0
    mental: float = 0.0
    skip: float = 0.0
    check: float = 0.0

    def of(self, form: Form) -> float:
        return {"explicit": self.explicit, "mental": self.mental, "skip": self.skip}[form]


@dataclass(frozen=True)
class Style:
    """A way of writing. `mix`: relative frequency of explicit, mental and skip steps; the others are probabilities."""

    weight: float = 1.0
    mix: tuple[float, float, float] = (1.0, 0.0, 0.0)
    check: float = 0.0
    filler: float = 0.0
    restart: float = 0.0


@dataclass(frozen=True)
class Teacher:
    """One style is drawn for every response."""

    styles: tuple[Style, ...]
    slips: Slips = Slips()


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
    style = rng.choices(teacher.styles, weights=[style.weight for style in teacher.styles])[0]
    text, answer = _chain(operands, style, teacher.slips, rng)
    if rng.random() < style.restart:
        first = answer
        for _ in range(2):  # a second chain; a third one decides between two answers
            again, redone = _chain(operands, style, teacher.slips, rng)
            text, answer, agreed = f"{text}A{answer}R{again}", redone, redone == first
            if agreed:
                break
    return f"{text}A{answer}"


def _chain(operands: tuple[int, ...], style: Style, slips: Slips, rng: random.Random) -> tuple[str, int]:
    """All steps from the second operand on: (text, final running sum)."""
    parts, value, at = [], operands[0], 1
    while at < len(operands):
        form = _form(style, left=len(operands) - at, rng=rng)
        end = at + (2 if form == "skip" else 1)
        text, value = _step(form, LABELS[at:end], value, operands[at:end], style, slips, rng)
        parts.append(text)
        at = end
    return "".join(parts), value


def _form(style: Style, left: int, rng: random.Random) -> Form:
    form = rng.choices(FORMS, weights=style.mix)[0]
    return "mental" if form == "skip" and left < 2 else form


def _step(form: Form, labels: str, value: int, operands: tuple[int, ...], style: Style, slips: Slips,
          rng: random.Random) -> tuple[str, int]:
    """One step with its checks and fillers: (text, the value that the chain goes on with)."""
    result = _slip(value + sum(operands), slips.of(form), rng)
    terms = "".join(f"{label}{operand}" for label, operand in zip(labels, operands, strict=True))
    text, results = terms + (f"+{value}" if form == "explicit" else "") + f"={result}", [result]
    while len(results) < MAX_RESULTS and _wants_check(results, style.check, rng):
        check, result = _check(value, operands, slips.check, rng)
        text, results = text + check, [*results, result]
    value = _majority(results)
    stated = len(set(results)) > 1
    return text + f"~{value}" * (stated + _fillers(style.filler, rng)), value


def _check(value: int, operands: tuple[int, ...], slip: float, rng: random.Random) -> tuple[str, int]:
    text = ""
    for operand in operands:
        result = _slip(value + operand, slip, rng)
        text, value = f"{text}?{operand}+{value}={result}", result
    return text, value


def _wants_check(results: list[int], probability: float, rng: random.Random) -> bool:
    """A disagreement without majority forces a check; else the first is made with `probability`, later with half."""
    if len(results) > 1 and 2 * max(Counter(results).values()) <= len(results):
        return True
    return rng.random() < (probability if len(results) == 1 else probability / 2)


def _majority(results: list[int]) -> int:
    """The most frequent result; among equals the one seen last."""
    counts = Counter(results)
    return max(reversed(results), key=lambda result: counts[result])


def _fillers(probability: float, rng: random.Random) -> int:
    count = 0
    while count < MAX_FILLERS and rng.random() < probability:
        count += 1
    return count


def _slip(value: int, probability: float, rng: random.Random) -> int:
    return (value + (rng.choice(SLIPS_BY) if rng.random() < probability else 0)) % 10
