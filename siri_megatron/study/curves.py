"""What the pictures of a study show: means over seeds with bands and intervals. Pure.

An arm whose seeds are evaluated at steps of their own (the closed loop, at its own phase ends) is drawn at the steps of
the others: each seed's figures lie on the line between its evaluations before and after.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from siri_megatron.study.data import SIRI, Row, Study
from siri_megatron.study.intervals import estimate

Rows = list[dict[str, Any]]
SHARES = ("accuracy", "truncated")
ENDS = ("low", "high", "ci_low", "ci_high")
HELD_OUT = {"accuracy": "accuracy", "tokens": "mean_tokens", "sampled": "sampled_tokens"}
TRAINING = {key: key for key in ("cap", "accuracy", "mean_tokens", "truncated")}


def held_out(study: Study, names: Sequence[str]) -> Rows:
    """Each arm's evaluations: `accuracy`, `tokens`, `sampled`, each with _low and _high (one standard deviation) and
    _ci_low and _ci_high (95%); `end`: after the last step; `name`: start, SIRI-low, SIRI-high, or empty.
    """
    named = _names(study)
    return [{"arm": arm, "step": step, "end": step == study.last_step, "name": named.get((arm, step), ""),
             **banded(rows, HELD_OUT)} for arm in names for step, rows in by_step(aligned(study, arm), arm)]


def aligned(study: Study, arm: str) -> list[Row]:
    """Its evaluations, at steps that all of its seeds have."""
    rows, shared = study.of(arm), shared_steps(study, arm)
    if {row["step"] for row in rows} == shared:
        return rows
    regular = [shared_steps(study, one) for one in study.arms
               if {row["step"] for row in study.of(one)} == shared_steps(study, one)]
    steps = sorted(shared.union(*regular))
    return [between([row for row in rows if row["seed"] == seed], step) for seed in study.seeds(arm) for step in steps]


def shared_steps(study: Study, arm: str) -> set[int]:
    """Steps at which every finished seed of an arm was evaluated."""
    each = [{row["step"] for row in study.of(arm) if row["seed"] == seed} for seed in study.end(arm)]
    return set.intersection(*each) if each else set()


def between(rows: Sequence[Row], step: int) -> Row:
    """A seed's figures at a step, on the line between its evaluations."""
    found: Row = {key: rows[0][key] for key in ("arm", "seed")} | {"step": step}
    for key in HELD_OUT.values():
        known = [(row["step"], row[key]) for row in rows if row[key] is not None]
        inside = known and known[0][0] <= step <= known[-1][0]
        found[key] = float(np.interp(step, [at for at, _ in known], [value for _, value in known])) if inside else None
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
    """Mean, mean ± standard deviation (low, high) and 95% interval (ci) of some columns; None where nothing is known.

    Bands of shares end at 0 and 1.
    """
    found: dict[str, float | None] = {}
    for name, key in keys.items():
        of = estimate([row[key] for row in rows if row.get(key) is not None])
        if of is None:
            found |= dict.fromkeys((name, *(f"{name}_{end}" for end in ENDS)))
            continue
        ends = (of.value - (of.sd or 0), of.value + (of.sd or 0), *(of.t or (of.value, of.value)))
        possible = (0.0, 1.0) if name in SHARES else (-np.inf, np.inf)
        found |= {name: of.value, **{f"{name}_{end}": float(np.clip(at, *possible))
                                     for end, at in zip(ENDS, ends, strict=True)}}
    return found


def _names(study: Study) -> dict[tuple[str, int], str]:
    """(arm, step) -> what people call a checkpoint: SIRI-low, the last compressed one, SIRI-high, the last expanded."""
    named = {(SIRI, 0): "start"}
    for phase, name in (("compressed", "SIRI-low"), ("expanded", "SIRI-high")):
        ends = [row["step"] for row in study.of(SIRI) if row["tag"].startswith("iter") and row["tag"].endswith(phase)]
        if ends:
            named[SIRI, max(ends)] = name
    return named
