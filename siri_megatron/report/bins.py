"""Down-sampling: which steps of a run are drawn as one point. Pure.

Invariants:
- each_record_once: the bins cover all records, in order, without overlap.
- short_runs_whole: with at most `limit` records every record is a point of its own.
- bounded: there are never more than 2 x limit bins, however long the run.
- phases_apart: no bin mixes phases, unless a run has more than `limit` of them.
- extremes_kept: of the keys in HIGHEST a bin keeps the highest value, of all others the mean of what is known.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from itertools import pairwise
from typing import Any

LIMIT = 400
"""Points of a curve: about two pixels each."""
HIGHEST = ("mismatch_max_abs", "grad_norm_peak")
"""Metrics of which a mean would hide what they are for."""


def bins(phases: Sequence[Hashable], limit: int = LIMIT) -> list[range]:
    """Ranges of record numbers. phases: of each record; equal neighbours belong together."""
    count = len(phases)
    if count <= limit:
        return [range(i, i + 1) for i in range(count)]
    edges = [0, *(i for i in range(1, count) if phases[i] != phases[i - 1]), count]
    if len(edges) - 1 > limit:
        edges = [0, count]
    size = math.ceil(count / limit)
    return [range(start, min(start + size, end)) for begin, end in pairwise(edges)
            for start in range(begin, end, size)]


def merge(records: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """One record of a bin's. `step` becomes the middle; `first_step` and `last_step` are added."""
    keys = dict.fromkeys(key for record in records for key in record)
    merged = {key: _one(key, [record[key] for record in records if record.get(key) is not None]) for key in keys}
    return merged | {"first_step": records[0]["step"], "last_step": records[-1]["step"]}


def _one(key: str, values: Sequence[Any]) -> Any:
    if not values:
        return None
    if isinstance(values[0], Mapping):
        budgets = dict.fromkeys(budget for value in values for budget in value)
        return {budget: _one(key, [value[budget] for value in values if value.get(budget) is not None])
                for budget in budgets}
    if isinstance(values[0], (bool, str)):
        return values[0]
    return max(values) if key in HIGHEST else math.fsum(values) / len(values)
