"""How the teachers of the generated families write: forms of a step, slips, checks by majority, restarts. Pure.

Invariants:
    drawn in order: every decision is one draw of the generator given, so a response is a function of its state
    majority: a step whose results do not agree by majority is done again, at most MAX_RESULTS times in all
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

Form = Literal["explicit", "mental", "skip"]
FORMS: tuple[Form, ...] = ("explicit", "mental", "skip")
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

    def style(self, rng: random.Random) -> Style:
        return rng.choices(self.styles, weights=[style.weight for style in self.styles])[0]


def with_restarts(chain: Callable[[], tuple[str, str]], style: Style, rng: random.Random) -> str:
    """A chain, (text, answer), perhaps done again from the start; a third one decides between two answers."""
    text, answer = chain()
    if rng.random() < style.restart:
        first = answer
        for _ in range(2):
            again, redone = chain()
            text, answer, agreed = f"{text}A{answer}R{again}", redone, redone == first
            if agreed:
                break
    return f"{text}A{answer}"


def walk(value: int, length: int, step: Callable[[Form, int, int, int], tuple[str, int]], style: Style,
         rng: random.Random) -> tuple[str, int]:
    """The steps from term 1 to the last of `length` terms: (text, final value).

    step: (form, value, first term, term after the last) -> (text, the value that the chain goes on with).
    """
    parts, at = [], 1
    while at < length:
        form = draw_form(style, left=length - at, rng=rng)
        end = at + (2 if form == "skip" else 1)
        text, value = step(form, value, at, end)
        parts.append(text)
        at = end
    return "".join(parts), value


def settle(result: int, check: Callable[[], tuple[str, int]], write: Callable[[int], str], style: Style,
           rng: random.Random) -> tuple[str, int]:
    """Checks of a step until its results agree, then fillers: (text, the value that the chain goes on with)."""
    text, results = "", [result]
    while wants_check(results, style.check, rng):
        again, result = check()
        text, results = text + again, [*results, result]
    value = majority(results)
    stated = len(set(results)) > 1
    return text + f"~{write(value)}" * (stated + count_fillers(style.filler, rng)), value


def draw_form(style: Style, left: int, rng: random.Random) -> Form:
    """The form of the next step; a skip needs two terms."""
    form = rng.choices(FORMS, weights=style.mix)[0]
    return "mental" if form == "skip" and left < 2 else form


def wants_check(results: list[int], probability: float, rng: random.Random) -> bool:
    """A disagreement without majority forces a check; else the first is made with `probability`, later with half."""
    if len(results) >= MAX_RESULTS:
        return False
    if len(results) > 1 and 2 * max(Counter(results).values()) <= len(results):
        return True
    return rng.random() < (probability if len(results) == 1 else probability / 2)


def majority(results: list[int]) -> int:
    """The most frequent result; among equals the one seen last."""
    counts = Counter(results)
    return max(reversed(results), key=lambda result: counts[result])


def count_fillers(probability: float, rng: random.Random) -> int:
    count = 0
    while count < MAX_FILLERS and rng.random() < probability:
        count += 1
    return count
