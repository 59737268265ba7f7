"""The study's questions, and the rules that decide them (docs/study/plan.md). Pure.

A part is one claim about a mean of paired differences over seeds, with a direction and a bound. A question is shown if
all of its parts are; Holm over the questions, and, for the verdicts of the parts, over the parts of a question.

Invariants (tests/study/test_analysis.py has them by these names):
- paired: a difference is taken within a seed, of evaluations that both arms have; a seed of one arm alone is in none.
- at_the_end: arms are compared after the last step, cycles at their own ends; no checkpoint is chosen by its figures.
- family_wise: with no effect at all, some question is called shown in at most 2.5% of studies.
- beside: estimates that decide nothing change no verdict.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

from siri_megatron.study.data import CLOSED, FIXED, MONOTONE, SIRI, BySeed, Row, Study, at_tokens
from siri_megatron.study.intervals import ALPHA, Estimate, estimate, holm, p_above, p_below, ratio

MARGIN = 0.05
"""Accuracy that SIRI may lose to the fixed cap and still count as not inferior."""
Verdict = Literal["shown", "not shown", "the opposite", "no decision"]
QUESTIONS = {
    1: "SIRI against a fixed cap: accuracy not inferior by 5 points, and shorter answers",
    2: "Under a harsh cap, SIRI keeps the hard tiers that a monotone compression loses",
    3: "SIRI's answers become more accurate and shorter from cycle to cycle",
    4: "The closed loop keeps hard tiers that SIRI's open loop loses"}


@dataclass(frozen=True)
class Measure:
    """A figure of an evaluation."""

    name: str
    unit: Literal["points", "tokens", "seconds"]
    of: Callable[[Row], float | None]


def column(name: str, key: str, unit: Literal["points", "tokens", "seconds"]) -> Measure:
    return Measure(name, unit, lambda row: row.get(key))


ACCURACY = column("accuracy", "accuracy", "points")
TOKENS = column("tokens per answer", "mean_tokens", "tokens")
SAMPLED = column("sampled tokens", "sampled_tokens", "tokens")
SECONDS = column("training seconds", "train_seconds", "seconds")


def hard_tiers(tiers: Sequence[str]) -> Measure:
    """Mean accuracy of these tiers; unknown where one of them is."""
    def of(row: Row) -> float | None:
        values = [row.get(f"acc:{tier}") for tier in tiers]
        known = [value for value in values if value is not None]
        return sum(known) / len(known) if values and len(known) == len(values) else None
    return Measure("hard tiers", "points", of)


def at_budgets(study: Study) -> list[Measure]:
    """Accuracy if answers are cut at a budget, for each below the largest."""
    return [column(f"accuracy@{budget}", f"acc@{budget}", "points") for budget in study.names("acc@")[:-1]]


@dataclass(frozen=True)
class Comparison:
    """other - one of a measure, over the seeds that both have."""

    label: str
    measure: Measure
    ones: Mapping[int, float]
    others: Mapping[int, float]

    @property
    def seeds(self) -> list[int]:
        return list(self.ones)

    @property
    def differences(self) -> list[float]:
        return [self.others[seed] - self.ones[seed] for seed in self.ones]

    @property
    def difference(self) -> Estimate | None:
        return estimate(self.differences)

    @property
    def ratio(self) -> Estimate | None:
        """other/one; of shares it says little, and is left out."""
        if self.measure.unit == "points":
            return None
        return ratio(list(self.others.values()), list(self.ones.values()))


def compared(label: str, measure: Measure, ones: BySeed, others: BySeed) -> Comparison:
    """Pair two sides by seed."""
    pairs = {seed: (measure.of(ones[seed]), measure.of(others[seed])) for seed in sorted(ones) if seed in others}
    known = {seed: (a, b) for seed, (a, b) in pairs.items() if a is not None and b is not None}
    return Comparison(label, measure, {seed: a for seed, (a, _) in known.items()},
                      {seed: b for seed, (_, b) in known.items()})


@dataclass(frozen=True)
class Part:
    """The claim that the mean difference lies above (or below) a bound."""

    name: str
    comparison: Comparison
    above: bool = True
    bound: float = 0.0

    def p(self) -> float | None:
        return (p_above if self.above else p_below)(self.comparison.differences, self.bound)

    def p_opposite(self) -> float | None:
        return (p_below if self.above else p_above)(self.comparison.differences, self.bound)


@dataclass(frozen=True)
class Decision:
    """What the rule says of a part, or of a question."""

    p: float | None
    corrected: float
    """By Holm; 1 where there is no p."""
    verdict: Verdict


@dataclass(frozen=True)
class Answer:
    """A question with its parts, and what is reported beside them."""

    question: int
    decision: Decision
    parts: Sequence[Part]
    decisions: Sequence[Decision]
    """Of the parts."""


def answers(study: Study, hard: Sequence[str]) -> list[Answer]:
    """Every question, decided. hard: names of the tiers that are called hard."""
    asked = {question: parts_of(study, question, hard) for question in QUESTIONS}
    of_parts = {question: _decisions([part.p() for part in parts], [part.p_opposite() for part in parts])
                for question, parts in asked.items()}
    whole = [_whole([decision.p for decision in each]) for each in of_parts.values()]
    against = [_against([part.p_opposite() for part in parts]) for parts in asked.values()]
    return [Answer(question, decision, asked[question], of_parts[question])
            for question, decision in zip(asked, _decisions(whole, against), strict=True)]


def _whole(p: Sequence[float | None]) -> float | None:
    """All parts hold: the largest p (an intersection-union test)."""
    known = [one for one in p if one is not None]
    return max(known) if known and len(known) == len(p) else None


def _against(p: Sequence[float | None]) -> float | None:
    """Some part holds in the other direction: the smallest p by Holm."""
    return min(holm([1.0 if one is None else one for one in p]), default=None)


def _decisions(p: Sequence[float | None], opposite: Sequence[float | None]) -> list[Decision]:
    """Verdicts of one family: Holm in each direction by itself."""
    forth, back = (holm([1.0 if one is None else one for one in each]) for each in (p, opposite))
    return [Decision(one, a, _verdict(one, a, b)) for one, a, b in zip(p, forth, back, strict=True)]


def _verdict(p: float | None, corrected: float, opposite: float) -> Verdict:
    if p is None:
        return "no decision"
    if corrected < ALPHA:
        return "shown"
    return "the opposite" if opposite < ALPHA else "not shown"


def parts_of(study: Study, question: int, hard: Sequence[str]) -> list[Part]:
    """The claims that a question consists of."""
    tiers = hard_tiers(hard)
    if question == 1:
        return [Part("1a", arms(study, FIXED, SIRI, ACCURACY), bound=-MARGIN),
                Part("1b", arms(study, FIXED, SIRI, TOKENS), above=False)]
    if question == 2:
        return [Part("2", arms(study, MONOTONE, SIRI, tiers))]
    if question == 4:
        return [Part("4", arms(study, SIRI, CLOSED, tiers))]
    found = [Part("", one, above=one.measure is ACCURACY) for measure in (ACCURACY, TOKENS)
             for one in cycle_by_cycle(study, SIRI, measure)]
    return [Part(f"3{chr(ord('a') + number)}", part.comparison, part.above) for number, part in enumerate(found)]


def arms(study: Study, one: str, other: str, measure: Measure) -> Comparison:
    """other - one after the last step."""
    return compared(f"{other} − {one}", measure, study.end(one), study.end(other))


def cycle_by_cycle(study: Study, arm: str, measure: Measure) -> list[Comparison]:
    """Differences between the ends of successive expansions."""
    return [compared(f"{arm}: iter{b} − iter{a}, expanded", measure, study.tagged(arm, f"iter{a}-expanded"),
                     study.tagged(arm, f"iter{b}-expanded")) for a, b in pairwise(study.cycles(arm))]


def from_start(study: Study, arm: str, measure: Measure) -> list[Comparison]:
    """What the first cycle changed."""
    return [compared(f"{arm}: iter{first} expanded − start", measure, study.at_step(arm, 0),
                     study.tagged(arm, f"iter{first}-expanded")) for first in study.cycles(arm)[:1]]


def at_equal_tokens(study: Study, one: str, other: str, measure: Measure, *, above: bool = False) -> Comparison:
    """other at its end - one when it had sampled as many tokens (above: or the next evaluation)."""
    ends = study.end(other)
    sampled = {seed: row["sampled_tokens"] for seed, row in ends.items()}
    side = "first evaluation at or above" if above else "last evaluation at or below"
    return compared(f"{other} − {one} ({side})", measure, at_tokens(study, one, sampled, above=above), ends)


def beside(study: Study, question: int, hard: Sequence[str]) -> list[Comparison]:
    """What is reported with a question and decides nothing."""
    tiers = hard_tiers(hard)
    if question == 1:
        return [arms(study, FIXED, SIRI, measure) for measure in (TOKENS, SAMPLED, SECONDS, tiers, *at_budgets(study))]
    if question == 2:
        return [arms(study, FIXED, MONOTONE, tiers), arms(study, FIXED, SIRI, tiers),
                arms(study, MONOTONE, SIRI, ACCURACY), arms(study, MONOTONE, SIRI, TOKENS)]
    if question == 3:
        return [one for measure in (ACCURACY, TOKENS) for one in (
            *from_start(study, SIRI, measure), *cycle_by_cycle(study, FIXED, measure))]
    return [arms(study, FIXED, CLOSED, tiers), arms(study, FIXED, SIRI, tiers),
            *(arms(study, SIRI, CLOSED, measure) for measure in (ACCURACY, TOKENS, SAMPLED, SECONDS))]


def equal_tokens(study: Study) -> list[Comparison]:
    """SIRI against the fixed cap at equal sampled tokens, from both sides."""
    return [at_equal_tokens(study, FIXED, SIRI, measure, above=above) for measure in (ACCURACY, TOKENS)
            for above in (False, True)]


def by_warm_start(study: Study, comparison: Comparison) -> dict[int, float]:
    """Mean difference among the seeds of each warm start; seeds that share one may not be independent."""
    return {start: sum(values) / len(values) for start, values in _groups(study, comparison).items()}


def without_warm_start(study: Study, comparison: Comparison) -> dict[int, list[float]]:
    """The differences of all other seeds, by the warm start that is left out."""
    groups = _groups(study, comparison)
    return {start: [value for other, values in groups.items() if other != start for value in values]
            for start in groups}


def _groups(study: Study, comparison: Comparison) -> dict[int, list[float]]:
    warm = study.warm_starts
    groups: dict[int, list[float]] = {}
    for seed, difference in zip(comparison.seeds, comparison.differences, strict=True):
        if seed in warm:
            groups.setdefault(warm[seed], []).append(difference)
    return dict(sorted(groups.items()))
