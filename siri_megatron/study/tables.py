"""The tables of a study, as rows of text, and as Markdown. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from siri_megatron.study.analysis import (
    ACCURACY,
    SAMPLED,
    SECONDS,
    TOKENS,
    Answer,
    Comparison,
    Measure,
    Part,
    arms,
    at_budgets,
    by_warm_start,
    column,
    hard_tiers,
    without_warm_start,
)
from siri_megatron.study.data import CLOSED, FIXED, MONOTONE, SIRI, BySeed, Study, natural
from siri_megatron.study.intervals import Interval, estimate

UNKNOWN = "–"
TRUNCATED = column("truncated", "truncated", "points")
CONTRASTS = ((FIXED, SIRI), (MONOTONE, SIRI), (SIRI, CLOSED), (FIXED, MONOTONE), (FIXED, CLOSED))
"""Pairs (one, other) of which the tiers are compared."""


@dataclass(frozen=True)
class Table:
    """Cells as text; the first column is a name."""

    head: Sequence[str]
    rows: Sequence[Sequence[str]]

    def markdown(self) -> str:
        rule = ["---", *("---:" for _ in self.head[1:])]
        return "\n".join("| " + " | ".join(row) + " |" for row in (self.head, rule, *self.rows))


def signed(value: float, digits: int = 1) -> str:
    """With its sign, and a minus that is as wide as the plus; no sign for what rounds to 0."""
    text = f"{value:+,.{digits}f}"
    return text.lstrip("+-") if float(text.replace(",", "")) == 0 else text.replace("-", "−")


def scaled(value: float, measure: Measure) -> float:
    """Shares in percentage points."""
    return 100 * value if measure.unit == "points" else value


def digits(measure: Measure) -> int:
    return 0 if measure is SAMPLED else 1


def difference(value: float, measure: Measure) -> str:
    return signed(scaled(value, measure), digits(measure))


def interval(ends: Interval | None, show: Callable[[float], str]) -> str:
    return UNKNOWN if ends is None else f"[{show(ends[0])}, {show(ends[1])}]"


def percent_more(share: float) -> str:
    """0.75 -> `−25.0%`."""
    return signed(100 * (share - 1)) + "%"


def p_text(p: float | None) -> str:
    if p is None:
        return UNKNOWN
    return "< 0.001" if p < 0.001 else f"{p:.3f}"


def answers_table(found: Sequence[Answer], titles: dict[int, str]) -> Table:
    """The verdict on every question."""
    rows = [[f"{one.question}. {titles[one.question]}", f"**{one.decision.verdict}**", p_text(one.decision.p),
             p_text(one.decision.corrected)] for one in found]
    return Table(("question", "the rule says", "p", "p, Holm over the questions"), rows)


def parts_table(answer: Answer) -> Table:
    """The claims of one question."""
    rows = []
    for part, decision in zip(answer.parts, answer.decisions, strict=True):
        rows.append([f"{part.name}: {claim(part)}", *difference_cells(part.comparison), p_text(decision.p),
                     p_text(decision.corrected), decision.verdict])
    return Table(("claim", *DIFFERENCE_HEAD, "p", "p, Holm over the parts", "part"), rows)


def claim(part: Part) -> str:
    sign = ">" if part.above else "<"
    measure = part.comparison.measure
    unit = " points" if measure.unit == "points" else ""
    bound = difference(part.bound, measure) if part.bound else "0"
    return f"{part.comparison.label}, {measure.name} {sign} {bound}{unit}"


DIFFERENCE_HEAD = ("mean difference", "95% bootstrap", "95% t", "sd", "pairs")


def difference_cells(comparison: Comparison) -> list[str]:
    """The estimate with both intervals; shares in percentage points."""
    found, measure = comparison.difference, comparison.measure
    if found is None:
        return [UNKNOWN, UNKNOWN, UNKNOWN, UNKNOWN, "0"]

    def show(value: float) -> str:
        return difference(value, measure)

    sd = UNKNOWN if found.sd is None else f"{scaled(found.sd, measure):,.{digits(measure)}f}"
    return [show(found.value), interval(found.bootstrap, show), interval(found.t, show), sd, str(found.pairs)]


def comparisons_table(comparisons: Sequence[Comparison]) -> Table:
    """Estimates that decide nothing."""
    rows = [[f"{one.label}, {one.measure.name}", *difference_cells(one), *_ratio_cells(one)] for one in comparisons]
    return Table(("estimate", *DIFFERENCE_HEAD, "ratio", "95% bootstrap", "95% t"), rows)


def _ratio_cells(comparison: Comparison) -> list[str]:
    found = comparison.ratio
    if found is None:
        return [""] * 3
    return [percent_more(found.value), interval(found.bootstrap, percent_more), interval(found.t, percent_more)]


def measures(study: Study, hard: Sequence[str]) -> list[Measure]:
    """Of an evaluation, in the order of tables."""
    return [ACCURACY, TOKENS, TRUNCATED, hard_tiers(hard), *at_budgets(study), SAMPLED, SECONDS]


def ends_table(study: Study, hard: Sequence[str]) -> Table:
    """Every arm after the last step: mean ± standard deviation over seeds; the start above them."""
    shown = measures(study, hard)
    start = {row["seed"]: row for row in study.evaluations if row["step"] == 0}
    sides = ([("start", start)] if start else []) + [(arm, study.end(arm)) for arm in study.arms]
    rows = [[name, str(len(side)), *(mean_sd(side, measure) for measure in shown)] for name, side in sides]
    return Table(("arm", "seeds", *(headline(measure) for measure in shown)), rows)


def headline(measure: Measure) -> str:
    return f"{measure.name}, %" if measure.unit == "points" else measure.name


def known(side: BySeed, measure: Measure) -> list[float]:
    values = (measure.of(row) for row in side.values())
    return [scaled(value, measure) for value in values if value is not None]


def mean_sd(side: BySeed, measure: Measure) -> str:
    values = known(side, measure)
    if not values:
        return UNKNOWN
    mean = f"{np.mean(values):,.{digits(measure)}f}"
    return mean if len(values) == 1 else f"{mean} ± {np.std(values, ddof=1):,.{digits(measure)}f}"


def mean_range(side: BySeed, measure: Measure) -> str:
    values = known(side, measure)
    places = digits(measure)
    return UNKNOWN if not values else (f"{np.mean(values):,.{places}f} ({min(values):,.{places}f} to "
                                       f"{max(values):,.{places}f})")


def tiers_table(study: Study, prefix: str) -> Table:
    """Every arm by tier at its end (acc: accuracy, tokens: answer length)."""
    shown = tier_measures(study, prefix)
    rows = [[arm, str(len(study.end(arm))), *(mean_sd(study.end(arm), one) for one in shown)] for arm in study.arms]
    return Table(("arm", "seeds", *(one.name for one in shown)), rows)


def tier_differences(study: Study, prefix: str) -> Table:
    """Paired differences by tier, with 95% t intervals."""
    shown = tier_measures(study, prefix)
    rows = [[f"{other} − {one}", str(len(arms(study, one, other, ACCURACY).seeds)),
             *(_tier_difference(arms(study, one, other, measure)) for measure in shown)]
            for one, other in CONTRASTS if one in study.arms and other in study.arms]
    return Table(("difference", "pairs", *(one.name for one in shown)), rows)


def tier_measures(study: Study, prefix: str) -> list[Measure]:
    return [column(tier, f"{prefix}:{tier}", "points" if prefix == "acc" else "tokens")
            for tier in study.names(f"{prefix}:")]


def _tier_difference(comparison: Comparison) -> str:
    found, measure = comparison.difference, comparison.measure
    if found is None:
        return UNKNOWN
    ends = interval(found.t, lambda value: signed(scaled(value, measure)))
    return f"{signed(scaled(found.value, measure))} {ends}"


def cycles_table(study: Study, arm: str, hard: Sequence[str]) -> Table:
    """The evaluations of an arm with cycles, tag by tag."""
    tags = sorted(dict.fromkeys(row["tag"] for row in study.of(arm)), key=_tag_order)
    shown = [ACCURACY, TOKENS, TRUNCATED, hard_tiers(hard), SAMPLED]
    rows = [[tag, _steps(study.tagged(arm, tag)), str(len(study.tagged(arm, tag))),
             *(mean_sd(study.tagged(arm, tag), measure) for measure in shown)] for tag in tags]
    return Table(("evaluation", "step", "seeds", *(headline(measure) for measure in shown)), rows)


def _tag_order(tag: str) -> tuple[bool, list[tuple[int, float, str]]]:
    return tag != "start", natural(tag)


def _steps(side: BySeed) -> str:
    steps = sorted({row["step"] for row in side.values()})
    return str(steps[0]) if len(steps) == 1 else f"{steps[0]} to {steps[-1]}"


def warm_starts_table(study: Study, parts: Iterable[Part]) -> Table | None:
    """Each part's mean difference by warm start, and a t interval over these means; None of one warm start."""
    parts = list(parts)
    groups = [by_warm_start(study, part.comparison) for part in parts]
    starts = sorted({start for group in groups for start in group})
    if len(starts) < 2:
        return None
    rows = []
    for part, group in zip(parts, groups, strict=True):
        measure, over = part.comparison.measure, estimate(list(group.values()))
        rows.append([f"{part.name}: {claim(part)}",
                     *(difference(group[start], measure) if start in group else UNKNOWN for start in starts),
                     interval(over.t if over else None, lambda value, of=measure: difference(value, of))])  # type: ignore[misc]
    return Table(("claim", *(f"warm start {start}" for start in starts), "95% t over warm starts"), rows)


def warm_start_ends_table(study: Study, names: Sequence[str]) -> Table:
    """Where each warm start began and the arms ended from it: means over its seeds."""
    sides = {"start": {row["seed"]: row for row in study.evaluations if row["step"] == 0}}
    sides |= {arm: study.end(arm) for arm in names}
    rows = []
    for start in sorted(set(study.warm_starts.values())):
        mine = {name: {seed: row for seed, row in side.items() if study.warm_starts.get(seed) == start}
                for name, side in sides.items()}
        rows.append([str(start), str(len(mine["start"])),
                     *(_mean(side, measure) for side in mine.values() for measure in (ACCURACY, TOKENS))])
    heads = [f"{name}: {headline(measure)}" for name in sides for measure in (ACCURACY, TOKENS)]
    return Table(("warm start", "seeds", *heads), rows)


def _mean(side: BySeed, measure: Measure) -> str:
    values = known(side, measure)
    return f"{np.mean(values):,.{digits(measure)}f}" if values else UNKNOWN


def without_warm_start_table(study: Study, parts: Iterable[Part]) -> Table:
    """Each part's mean difference and t interval over the seeds of all warm starts but one."""
    starts = sorted(set(study.warm_starts.values()))
    rows = [[f"{part.name}: {claim(part)}",
             *(_estimated(without_warm_start(study, part.comparison).get(start, []), part.comparison.measure)
               for start in starts)] for part in parts]
    return Table(("claim", *(f"without {start}" for start in starts)), rows)


def _estimated(values: Sequence[float], measure: Measure) -> str:
    found = estimate(values)
    if found is None:
        return UNKNOWN
    return f"{difference(found.value, measure)} {interval(found.t, lambda value: difference(value, measure))}"


def exploratory_table(study: Study, hard: Sequence[str], names: Sequence[str]) -> Table:
    """Mean and range of some arms, and their mean differences to the fixed cap on the seeds that both have."""
    shown = [ACCURACY, TOKENS, hard_tiers(hard), TRUNCATED, SAMPLED, SECONDS]
    rows = []
    for arm in names:
        against = [arms(study, FIXED, arm, measure) for measure in (ACCURACY, TOKENS)]
        rows.append([arm, str(len(study.end(arm))), *(mean_range(study.end(arm), measure) for measure in shown),
                     *(_mean_difference(one) if arm != FIXED else "" for one in against)])
    return Table(("arm", "seeds", *(headline(measure) for measure in shown), "Δ accuracy to fixed, points",
                  "Δ tokens to fixed"), rows)


def _mean_difference(comparison: Comparison) -> str:
    found = comparison.difference
    return UNKNOWN if found is None else difference(found.value, comparison.measure)
