"""`results.md`: what the rules say of each question, and every table behind it. Its words are made of figures alone."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np

from siri_megatron.files import write_text
from siri_megatron.study import tables
from siri_megatron.study.analysis import (
    ACCURACY,
    MARGIN,
    QUESTIONS,
    SAMPLED,
    SECONDS,
    TOKENS,
    Answer,
    Comparison,
    Measure,
    Part,
    answers,
    arms,
    beside,
    equal_tokens,
)
from siri_megatron.study.data import CLOSED, FIXED, SIRI, Study, read_study
from siri_megatron.study.pictures import PICTURES, SUMMARY, Picture, write_pictures

Kind = Literal["confirmatory", "exploratory"]
HARD_TIERS = 2
"""So many of the last tiers, in natural order, are called hard."""
GENERATED = "Generated from evaluations.csv and steps.csv by `siri study`; not edited by hand."
SPREAD = "± is the standard deviation over seeds."
READ_AS = ("Differences of shares are in percentage points. Intervals are two-sided 95% over seeds: a paired bootstrap "
           "(percentile, 10,000 resamples) and a t interval; p is one-sided, the larger of the two methods'.")


def write_results(directory: Path, title: str, kind: Kind, origin: str = "") -> list[Path]:
    """Read a study's tables in `directory`, and write results.md and the pictures beside them.

    Args:
        title: of the page.
        kind: confirmatory studies are decided, exploratory ones are tables alone.
        origin: what it is of (the plan and its fingerprint), for the head of the page.

    Raises:
        DataError: the tables cannot be used (see `read_study`).
    """
    study = read_study(directory)
    decided = kind == "confirmatory"
    page = directory / "results.md"
    write_text(page, results(study, title, kind, origin))
    return [page, *write_pictures(study, directory, study.decided if decided else study.arms,
                                  [SUMMARY, *PICTURES] if decided else PICTURES)]


def results(study: Study, title: str, kind: Kind, origin: str = "") -> str:
    """The whole page."""
    hard = study.names("acc:")[-HARD_TIERS:]
    decided = kind == "confirmatory"
    head = " ".join([GENERATED, *([READ_AS] if decided else []), SPREAD])
    parts = [f"# {title}", *([origin] if origin else []), head, *_runs(study)]
    parts += shown(SUMMARY) if decided else []
    parts += [f"Hard tiers: {', '.join(hard)}."] if hard else []
    parts += _decided(study, hard) if decided else ["Exploratory: nothing here is decided."]
    parts += [*_ends(study, hard, differences=decided), *_cycles(study, hard), *_explored(study, kind, hard)]
    parts += ["## Pictures", *(part for picture in PICTURES for part in shown(picture))]
    return "\n\n".join(parts) + "\n"


def shown(picture: Picture) -> list[str]:
    return [f"![{picture.name.removesuffix('.svg')}]({picture.name})", picture.caption]


def _runs(study: Study) -> list[str]:
    counts = ", ".join(f"{arm} {len(study.seeds(arm))}" for arm in study.arms)
    said = [f"Runs by arm: {counts}; {study.last_step} steps each."]
    missing = study.unfinished()
    return [*said, *([f"Without an evaluation at the last step, and in no comparison: {', '.join(missing)}."]
                     if missing else [])]


def _decided(study: Study, hard: Sequence[str]) -> list[str]:
    found = answers(study, hard)
    said = ["## What the rules say", tables.answers_table(found, QUESTIONS).markdown()]
    for answer in found:
        others = beside(study, answer.question, hard)
        said += [f"### Question {answer.question}", sentence(study, answer, hard),
                 tables.parts_table(answer).markdown(), "Beside it, deciding nothing:",
                 tables.comparisons_table(others).markdown()]
        if answer.question == 1:
            said += [equal_tokens_sentence(study), tables.comparisons_table(equal_tokens(study)).markdown()]
    return [*said, *_by_warm_start(study, [part for answer in found for part in answer.parts])]


def _by_warm_start(study: Study, parts: Sequence[Part]) -> list[str]:
    by_warm = tables.warm_starts_table(study, parts)
    if not by_warm:
        return []
    return ["### By warm start", "Mean difference among the seeds of each warm start. Seeds that share one may be more "
            "alike than others; the interval over warm starts is the cautious reading.", by_warm.markdown(),
            "Where each warm start began, and where the arms ended from it (means over its seeds):",
            tables.warm_start_ends_table(study, study.decided).markdown(),
            "Does one warm start make the result? Mean differences and 95% t intervals over the seeds of all others:",
            tables.without_warm_start_table(study, parts).markdown()]


def sentence(study: Study, answer: Answer, hard: Sequence[str]) -> str:
    """The answer to a question in figures. Intervals are t intervals."""
    tell = {1: _against_fixed, 2: _against_monotone, 3: _by_cycle, 4: _closed_loop}[answer.question]
    told = tell(study, answer, hard)
    return f"**{answer.decision.verdict.capitalize()}.** {told}" if told else "**No decision**: an arm is missing."


def _against_fixed(study: Study, answer: Answer, hard: Sequence[str]) -> str:
    accuracy, tokens = (part.comparison for part in answer.parts)
    if not accuracy.seeds:
        return ""
    cost = "; ".join(f"{one.measure.name} {_ratio(one)}" for one in
                     (arms(study, FIXED, SIRI, measure) for measure in (SAMPLED, SECONDS)))
    return (f"After {study.last_step} steps, {_levels(accuracy)}: {_difference(accuracy)} (margin "
            f"{tables.difference(-MARGIN, ACCURACY)}). Tokens per answer: {_levels(tokens)}: {_ratio(tokens)}. To get "
            f"there: {cost}.")


def equal_tokens_sentence(study: Study) -> str:
    """What holds at equal sampled tokens; nothing does unless it does on both sides."""
    below, above, *_ = equal_tokens(study)
    ends = [one.difference.t if one.difference else None for one in (below, above)]
    if any(end is None for end in ends):
        return "At equal sampled tokens: no interval."
    held = all(end is not None and end[0] > -MARGIN for end in ends)
    verdict = ("the interval lies above the margin" if held else
               "it is not so on both sides that the interval lies above the margin")
    return (f"At equal sampled tokens (the fixed cap's evaluation just below, and just above, what SIRI had sampled at "
            f"its end): accuracy {_difference(below)} and {_difference(above)}; {verdict}.")


def _against_monotone(study: Study, answer: Answer, hard: Sequence[str]) -> str:
    tiers = answer.parts[0].comparison
    if not tiers.seeds:
        return ""
    lost = [one for one in beside(study, 2, hard)[:2] if one.seeds]
    against = "; ".join(f"{one.label} {_difference(one)}" for one in lost)
    return (f"Accuracy of {' and '.join(hard)} after {study.last_step} steps: {_levels(tiers)}: {_difference(tiers)}."
            + (f" Against the fixed cap: {against}." if against else ""))


def _by_cycle(study: Study, answer: Answer, hard: Sequence[str]) -> str:
    cycles = study.cycles(SIRI)
    if not answer.parts:
        return ""
    path = [f"iter{cycle} {_level(study, cycle, ACCURACY)}, {_level(study, cycle, TOKENS)} tokens" for cycle in cycles]
    steps = "; ".join(f"{part.name} {_difference(part.comparison)} {part.comparison.measure.name}, {decision.verdict}"
                      for part, decision in zip(answer.parts, answer.decisions, strict=True))
    return f"Ends of the expansions: {'; '.join(path)}. Differences: {steps}."


def _level(study: Study, cycle: int, measure: Measure) -> str:
    values = tables.known(study.tagged(SIRI, f"iter{cycle}-expanded"), measure)
    return f"{np.mean(values):.1f}{'%' if measure is ACCURACY else ''}"


def _closed_loop(study: Study, answer: Answer, hard: Sequence[str]) -> str:
    tiers = answer.parts[0].comparison
    if not tiers.seeds:
        return ""
    cost = "; ".join(f"{measure.name} {_ratio(arms(study, SIRI, CLOSED, measure))}" for measure in
                     (TOKENS, SAMPLED, SECONDS))
    return (f"Accuracy of {' and '.join(hard)} after {study.last_step} steps: {_levels(tiers)}: {_difference(tiers)}. "
            f"Overall accuracy: {_difference(arms(study, SIRI, CLOSED, ACCURACY))}. Cost against SIRI: {cost}.")


def _levels(comparison: Comparison) -> str:
    """`siri 83.1%, fixed 83.7%`, over the seeds that both have."""
    other, one = comparison.label.split(" (")[0].split(" − ")
    unit = "%" if comparison.measure.unit == "points" else ""
    means = (tables.scaled(float(np.mean(list(side.values()))), comparison.measure)
             for side in (comparison.others, comparison.ones))
    return ", ".join(f"{name} {mean:.1f}{unit}" for name, mean in zip((other, one), means, strict=True))


def _difference(comparison: Comparison) -> str:
    found, measure = comparison.difference, comparison.measure
    if found is None:
        return tables.UNKNOWN
    unit = " points" if measure.unit == "points" else ""
    ends = tables.interval(found.t, lambda value: tables.difference(value, measure))
    return f"{tables.difference(found.value, measure)}{unit} {ends}"


def _ratio(comparison: Comparison) -> str:
    found = comparison.ratio
    if found is None:
        return tables.UNKNOWN
    return f"{tables.percent_more(found.value)} {tables.interval(found.t, tables.percent_more)}"


def _ends(study: Study, hard: Sequence[str], *, differences: bool) -> list[str]:
    said = ["## Every arm after the last step", tables.ends_table(study, hard).markdown()]
    for prefix, title in (("acc", "accuracy, %"), ("tokens", "tokens per answer")):
        if not study.names(f"{prefix}:"):
            continue
        said += [f"### By tier: {title}", tables.tiers_table(study, prefix).markdown()]
        apart = tables.tier_differences(study, prefix)
        if differences and apart.rows:
            said += ["Paired differences with 95% t intervals, not corrected for their number:", apart.markdown()]
    return said


def _cycles(study: Study, hard: Sequence[str]) -> list[str]:
    with_cycles = [arm for arm in study.arms if study.cycles(arm)]
    return [part for arm in with_cycles for part in (
        f"### Cycle by cycle: {arm}", tables.cycles_table(study, arm, hard).markdown())]


def _explored(study: Study, kind: Kind, hard: Sequence[str]) -> list[str]:
    names = study.explored if kind == "confirmatory" else study.arms
    if not names:
        return []
    return ["## Exploratory arms", "Mean (lowest to highest seed); the differences to the fixed cap are means over the "
            "seeds that both have. Few seeds: no interval, no decision.",
            tables.exploratory_table(study, hard, names).markdown()]

