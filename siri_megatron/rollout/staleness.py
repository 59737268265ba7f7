"""How old the tokens of a step were when it was trained on: what `rollout.lag` costs, in numbers. Pure.

Invariants:
    by_tokens: the mean and the share weigh sampled tokens, not responses; forced tokens have no version.
    of_the_ledger: a function of the rows, so a replay says the same.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from siri_megatron.budget.admission import staleness
from siri_megatron.ledger.read import StepRows


def staleness_stats(rows: StepRows, caps: Mapping[str, int]) -> dict[str, Any]:
    """Staleness of a step with at least one row, under the names of `observe.metrics`.

    Args:
        caps: prompt -> cap at admission, of the prompts whose cap is below the step's.
    """
    row, version, tokens = rows.spans
    old = staleness(rows.budget.step, version.astype(np.int64))
    versions_of = np.bincount(row, minlength=len(rows))
    lowered = {group for group, prompt, cap in zip(rows.group, rows.prompt_id, rows.cap, strict=True)
               if cap < caps.get(prompt, rows.budget.cap)}
    return {
        "lowered_groups": len(lowered),
        "staleness_mean": float(np.average(old, weights=tokens)), "staleness_max": int(old.max()),
        "stale_tokens": float(np.average(old > 0, weights=tokens)),
        "mixed_versions": float(np.mean(versions_of > 1)), "weight_version": str(version.astype(np.int64).max()),
    }
