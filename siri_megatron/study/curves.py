"""What the pictures of a study show: means over seeds with bands and intervals. Pure.

An arm whose seeds are evaluated at steps of their own (the closed loop, at its own phase ends) is drawn at the steps of
the others: each seed's figures lie on the line between its evaluations before and after.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from siri_megatron.report.compare import LEAST_PAIRS
from siri_megatron.study.data import SIRI, Row, Study
from siri_megatron.study.intervals import deviation, t_interval

Rows = list[dict[str, Any]]
SHARES = ("accuracy", "truncated")
ENDS = ("low", "high", "ci_low", "ci_high")
HELD_OUT = {"accuracy": "accuracy", "tokens": "mean_tokens", "sampled": "sampled_tokens"}
TRAINING = {key: key for key in ("cap", "accuracy", "mean_tokens", "truncated")}


def held_out(study: Study, names: Sequence[str]) -> Rows:
    """Each arm's evaluations: `accuracy`, `tokens` and `sampled`, each with the ends of `banded`.

    `end`: after the last step; `name`: start, SIRI-low, SIRI-high, or empty.
    """
    named = _names(study)
    return [{"arm": arm, "step": step, "end": step == study.last_step, "name": named.get((arm, step), ""),
             **banded(rows, HELD_OUT)} for arm in names for step, rows in by_step(aligned(study, arm), arm)]


def aligned(study: Study, arm: str) -> list[Row]:
    """Its evaluations, at steps that all of its seeds have."""
    rows = study.of(arm)
    if regular(study, arm):
        return rows
    return [between([row for row in rows if row["seed"] == seed], step) for seed in study.seeds(arm)
            for step in common_steps(study)]


def regular(study: Study, arm: str) -> bool:
    """Whether its finished seeds are evaluated at the same steps."""
    return {row["step"] for row in study.of(arm)} == shared_steps(study, arm)


def common_steps(study: Study) -> list[int]:
    """The evaluated steps of the regular arms; without one, those that all seeds of an arm share."""
    chosen = [arm for arm in study.arms if regular(study, arm)] or study.arms
    return sorted(set().union(*(shared_steps(study, arm) for arm in chosen)))


def shared_steps(study: Study, arm: str) -> set[int]:
    """Steps at which every finished seed of an arm was evaluated."""
    each = [{row["step"] for row in study.of(arm) if row["seed"] == seed} for seed in study.end(arm)]
    return set.intersection(*each) if each else set()


def between(rows: Sequence[Row], step: int) -> Row:
    """A seed's figures at a step, on the line between its evaluations."""
    found: Row = {key: rows[0][key] for key in ("arm", "seed")} | {"step": step}
    for key in HELD_OUT.values():
        known = [(row["step"], row[key]) for row in rows if row[key] is not None]
        steps, values = [at for at, _ in known], [value for _, value in known]
        found[key] = float(np.interp(step, steps, values)) if steps and steps[0] <= step <= steps[-1] else None
    return found


def training(study: Study, names: Sequence[str]) -> Rows:
    """Each arm's training steps."""
    return [{"arm": arm, "step": step, **banded(rows, TRAINING)} for arm in names
            for step, rows in by_step(study.steps, arm)]


def tiers(study: Study, names: Sequence[str]) -> Rows:
    """Each arm's accuracy by tier at its end, with a 95% interval."""
    found: Rows = []
    for arm in names:
        for tier in study.names("acc:"):
            made = banded(list(study.end(arm).values()), {"accuracy": f"acc:{tier}"})
            found.append({"arm": arm, "tier": tier, "accuracy": made["accuracy"], "low": made["accuracy_ci_low"],
                          "high": made["accuracy_ci_high"]})
    return found


def by_step(rows: Sequence[Row], arm: str) -> list[tuple[int, list[Row]]]:
    found: dict[int, list[Row]] = {}
    for row in rows:
        if row["arm"] == arm:
            found.setdefault(row["step"], []).append(row)
    return sorted(found.items())


def banded(rows: Sequence[Row], keys: dict[str, str]) -> dict[str, float | None]:
    """Mean, band (low, high) and interval (ci) over seeds of some columns; None where nothing is known.

    Bands: ± one standard deviation, within lowest and highest seed. Intervals: 95% t, of shares within 0 and 1; of
    fewer than LEAST_PAIRS seeds lowest and highest.
    """
    found: dict[str, float | None] = {}
    for name, key in keys.items():
        values = [row[key] for row in rows if row.get(key) is not None]
        ends = _ends(values, share=name in SHARES) if values else (None,) * 4
        found |= {name: float(np.mean(values)) if values else None,
                  **{f"{name}_{end}": at for end, at in zip(ENDS, ends, strict=True)}}
    return found


def _ends(values: Sequence[float], *, share: bool) -> tuple[float, ...]:
    """As ENDS."""
    mean, sd, lowest, highest = float(np.mean(values)), deviation(values) or 0.0, min(values), max(values)
    interval = t_interval(values) if len(values) >= LEAST_PAIRS else None
    low, high = interval or (lowest, highest)
    inside = (max(low, 0.0), min(high, 1.0)) if share else (low, high)
    return (max(mean - sd, lowest), min(mean + sd, highest), *inside)


def _names(study: Study) -> dict[tuple[str, int], str]:
    """(arm, step) -> what people call a checkpoint: SIRI-low, the last compressed one, SIRI-high, the last expanded."""
    named = {(SIRI, 0): "start"}
    for phase, name in (("compressed", "SIRI-low"), ("expanded", "SIRI-high")):
        ends = [row["step"] for row in study.of(SIRI) if row["tag"].startswith("iter") and row["tag"].endswith(phase)]
        if ends:
            named[SIRI, max(ends)] = name
    return named
