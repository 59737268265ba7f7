"""Differences between runs, with intervals. Pure.

Two evaluations that asked the same questions are compared question by question; two arms (configs that differ in seed
alone) with seeds in common, seed by seed. Resampling the pairs keeps what they share out of the interval.

Invariants:
- paired_only: a difference has an interval only where both sides have the same questions (or seeds); else none.
- inside: an interval contains the estimate.
- same_is_zero: a run compared with itself gives 0, with an interval of no width.
- deterministic: equal arguments give equal intervals.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from siri_megatron.config import flat
from siri_megatron.report.read import RunData

RESAMPLES = 10_000
LEAST_PAIRS = 5
"""Fewer pairs carry no bootstrap interval worth the name: 5 pairs have 126 different resamples."""
CHUNK = 1_000_000
"""Drawn indices at a time."""
APART = ("name", "runs_dir", "seed")
"""Config keys that do not make another arm."""


@dataclass(frozen=True)
class Difference:
    """Mean of the paired differences, and its 95% interval if there are enough pairs."""

    value: float
    low: float | None
    high: float | None
    pairs: int
    over: str
    """`questions` or `seeds`."""


def bootstrap(differences: Sequence[float], over: str, seed: int = 0) -> Difference | None:
    """The mean difference with its percentile bootstrap interval (Efron 1979); None without pairs."""
    values = np.asarray(differences, np.float64)
    if not len(values):
        return None
    mean = float(values.mean())
    if len(values) < LEAST_PAIRS:
        return Difference(mean, None, None, len(values), over)
    low, high = np.percentile(resampled_means(values, seed), (2.5, 97.5))
    return Difference(mean, min(float(low), mean), max(float(high), mean), len(values), over)


def resampled_means(values: np.ndarray[Any, Any], seed: int) -> np.ndarray[Any, Any]:
    """Means of RESAMPLES resamples, drawn in pieces so that many questions take little memory."""
    generator = np.random.default_rng(seed)
    rows = max(1, CHUNK // len(values))
    pieces = [values[generator.integers(len(values), size=(min(rows, RESAMPLES - done), len(values)))].mean(axis=1)
              for done in range(0, RESAMPLES, rows)]
    return np.concatenate(pieces)


def by_question(one: Mapping[str, Any], other: Mapping[str, Any], key: str) -> Difference | None:
    """other - one of `accuracy` or `tokens`, over the questions that both evaluations asked and could judge."""
    first, second = one.get("questions") or {}, other.get("questions") or {}
    if not first or first.get("fingerprint") != second.get("fingerprint"):
        return None
    pairs = zip(first.get(key, ()), second.get(key, ()), strict=False)  # the shorter one asked the first of them
    return bootstrap([b - a for a, b in pairs if a is not None and b is not None], "questions")


def arms(runs: Sequence[RunData]) -> dict[str, list[RunData]]:
    """Runs that differ in name and seed alone, together; an arm is called as its first run."""
    found: dict[str, list[RunData]] = {}
    for run in runs:
        settings = {key: value for key, value in flat(run.config).items() if key not in APART}
        same = next((members for members in found.values() if run.config and settings == {
            key: value for key, value in flat(members[0].config).items() if key not in APART}), None)
        if same is None:
            found[run.name if run.name not in found else f"{run.name} ({len(found)})"] = [run]
        else:
            same.append(run)
    return found


def by_seed(one: Sequence[RunData], other: Sequence[RunData], key: str) -> Difference | None:
    """other - one of the last evaluation's `accuracy` or `mean_tokens`, over the seeds that both arms have."""
    first, second = ({run.setting("seed"): last[key] for run in arm if (last := last_evaluation(run))
                      and last[key] is not None} for arm in (one, other))
    return bootstrap([second[seed] - first[seed] for seed in first if seed in second], "seeds")


def last_evaluation(run: RunData) -> Mapping[str, Any] | None:
    return run.evaluations[-1] if run.evaluations else None


def settings_apart(runs: Sequence[RunData]) -> dict[str, list[Any]]:
    """Config keys in which the runs differ -> the value of each run."""
    configs = [flat(run.config) for run in runs]
    keys = dict.fromkeys(key for config in configs for key in config)
    values = {key: [config.get(key) for config in configs] for key in keys if key not in ("name", "runs_dir")}
    return {key: each for key, each in values.items() if any(value != each[0] for value in each)}
