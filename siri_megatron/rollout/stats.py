"""What one step's rollouts say in numbers. Pure: a function of the ledger rows, so a replay says the same.

Invariants:
    own_prompts_vote: verdicts, lengths and truncation are those of the step's own prompts: groups that replace others
        (dynamic sampling) come the more often the fewer of these carry a signal. What was spent counts all.
    no_verdict_no_vote: rows whose verification failed (reward NaN) enter no accuracy, on either side of the fraction.
    rising_budget: at a budget at or above a row's cap, its reward and truncation are those at its cap. So where prompts
        have caps of their own, J(B) is what min(B, cap of the prompt) would give; a step with the cap B would lower
        these caps in proportion, and so give a little less.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from siri_megatron.config import RolloutConfig
from siri_megatron.ledger.read import StepRows
from siri_megatron.ledger.schema import CUT


def step_stats(rows: StepRows, rollout: RolloutConfig) -> dict[str, Any]:
    """Rollout statistics of a step, under the names of `observe.metrics`."""
    engines, counts = np.unique(rows.column("engine"), return_counts=True)
    refills = len(np.unique(rows.group[rows.group >= rollout.prompts_per_step]))
    return {
        "tokens": int(rows.response_length.sum()), "prompt_tokens": int(rows.prompt_length.sum()),
        "engines": {str(engine): int(count) for engine, count in zip(engines, counts, strict=True)},
        **({"refill_groups": refills} if rollout.max_refill else {}),
        **_verdicts(rows.below(rollout.prompts_per_step), rollout.budget_grid),
    }


def _verdicts(rows: StepRows, grid: Sequence[int]) -> dict[str, Any]:
    """What the rows of the step's own prompts say."""
    reward, length, cut = rows.reward, rows.response_length, rows.truncated
    wrong, right = one_sided_groups(rows.group, reward)
    return {
        "samples": len(rows),
        "accuracy": mean(reward), "accuracy_untruncated": mean(reward[~cut]), "truncated": mean(cut),
        "forced": mean(rows.forced_length > 0),
        "budget_accuracy": {str(budget): mean(rows.budget_rewards[:, at]) for at, budget in enumerate(grid)},
        **budget_shares(rows, grid),
        "mean_tokens": mean(length), "p50_tokens": float(np.percentile(length, 50)),
        "p90_tokens": float(np.percentile(length, 90)),
        "failed_verifications": int(np.isnan(reward).sum()), "failed_share": float(np.isnan(reward).mean()),
        "all_wrong_groups": wrong, "all_right_groups": right,
        "dot_cut": mean(rows.column("finish_reason") == CUT), "mean_cap": mean(rows.cap),
        "lowered_caps": mean(rows.cap < rows.budget.cap),
    }


def budget_shares(rows: StepRows, grid: Sequence[int]) -> dict[str, dict[str, float | None]]:
    """Had the cap been B: the share of samples cut, the accuracy of the others. A B above the cap counts as it."""
    ends = {budget: ~rows.truncated & (rows.response_length <= budget) for budget in grid}
    return {
        "budget_truncated": {str(budget): mean(~ended) for budget, ended in ends.items()},
        "budget_accuracy_untruncated": {str(budget): mean(rows.budget_rewards[ended, at])
                                        for at, (budget, ended) in enumerate(ends.items())},
    }


def mean(values: NDArray[Any]) -> float | None:
    """Mean of the values that are there (NaN is none); None if there are none at all."""
    there = values[~np.isnan(values)] if values.dtype.kind == "f" else values
    return float(there.mean(dtype=np.float64)) if len(there) else None


def one_sided_groups(group: NDArray[Any], reward: NDArray[Any]) -> tuple[float, float]:
    """Shares of the groups in which every verdict is wrong, and right. A group without verdict is neither."""
    _, index = np.unique(group, return_inverse=True)
    verdicts = np.bincount(index, weights=~np.isnan(reward))
    rights = np.bincount(index, weights=np.nan_to_num(reward))
    judged = verdicts > 0
    return float(np.mean(judged & (rights == 0))), float(np.mean(judged & (rights == verdicts)))
