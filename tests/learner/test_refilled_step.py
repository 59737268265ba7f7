"""A step with refills trains as one that had sampled nothing but the groups it trains on: loss, gradients, weights.

The reference is transformers and the losses as printed, on a list of rollouts from which every other group was taken
out by hand; its means know of no weights. Public stacks got the denominators of filtered batches wrong more than once.
"""

from __future__ import annotations

from copy import deepcopy
from pathlib import Path
from typing import Any

import grpo_reference as reference
import numpy as np
import pytest
from layout_runs import BUCKET, TEMPERATURE, Mode, assert_close, exported, exported_gradients, tensor_errors
from models import load_model
from ranks import Rank, Ranks

from siri_megatron.batching.plan import StepPlan
from siri_megatron.config import AlgorithmConfig, BatchingConfig, LearnerConfig, ModelConfig, OptimizerConfig
from siri_megatron.learner.settings import LearnerSettings

WANTED, SIZE = 4, 4
UNIFORM = {1: 1.0, 2: 0.0, 5: 0.0}
"""Groups whose rewards are all equal: two of the step's own four, and one of the five refills."""
FAILED = 4
"""A refill of which one verification failed: it carries a signal with the others."""
TRAINED, SURPLUS = [0, 3, 4, 6], [7, 8]
CASES: dict[str, tuple[dict[str, Any], Mode, dict[str, Any]]] = {
    "grpo DP2 packed": ({"dp": 2}, "packed", {"loss": "grpo"}),
    "dapo TP2 bucketed": ({"tp": 2}, "bucketed", {"loss": "dapo", "advantage": "batch_std"}),
    "dr_grpo DP2 bucketed": ({"dp": 2}, "bucketed", {"loss": "dr_grpo", "advantage": "batch_std"}),
    "grpo PP2 packed, batch": ({"pp": 2}, "packed", {"loss": "grpo", "advantage": "batch_std"})}


def sampled(path: Path) -> reference.Rows:
    """What lies in the ledger: nine groups."""
    rows = reference.rollouts(9, SIZE, load_model(path), TEMPERATURE)
    for number, row in enumerate(rows.rollouts):
        row.reward = UNIFORM.get(row.group, row.reward)
        if row.group == FAILED and number % SIZE == 0:
            row.reward = float("nan")
    return rows


def by_hand(rows: reference.Rows) -> reference.Rows:
    """The rollouts that are to be trained on, and no others."""
    return reference.Rows([row for row in deepcopy(rows).rollouts if row.group in TRAINED and not np.isnan(row.reward)])


def settings(path: Path, layout: dict[str, Any], algorithm: AlgorithmConfig) -> LearnerSettings:
    return LearnerSettings(ModelConfig(path=path), LearnerConfig(**layout, collective_timeout_s=30.0),
                           OptimizerConfig(lr=reference.LR, weight_decay=0.1, eps=1e-4, clip_grad=1e9), algorithm,
                           TEMPERATURE, "packed", tokens_per_micro_batch=160, context=64, seed=1)


def planned(rows: reference.Rows, algorithm: AlgorithmConfig, layout: dict[str, Any], mode: Mode,
            most_groups: int | None = WANTED) -> StepPlan:
    return reference.plan(rows, algorithm, BatchingConfig(mode=mode, tokens_per_micro_batch=160),
                          dp=layout.get("dp", 1), multiple=4, most_groups=most_groups)


def one_step(rank: Rank, given: LearnerSettings, plan: StepPlan, rows: reference.Rows) -> dict[str, Any]:
    with rank.learner(given, bucket=BUCKET) as learner:
        metrics = learner.train_step(plan, rows)
        return {"metrics": metrics, "gradients": exported_gradients(learner), "weights": exported(learner)}


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("mini_batches", [1, 2])
def test_only_the_groups_asked_for_count(ranks: Ranks, path: Path, name: str, mini_batches: int) -> None:
    layout, mode, keys = CASES[name]
    algorithm = AlgorithmConfig(mini_batches=mini_batches, **keys)
    given, rows = settings(path, layout, algorithm), sampled(path)
    plan, chosen = planned(rows, algorithm, layout, mode), by_hand(rows)
    assert plan.dropped_groups == len(UNIFORM) + len(SURPLUS)
    wanted = reference.train(load_model(path), chosen, planned(chosen, algorithm, layout, mode, None), algorithm,
                             given.optimizer, TEMPERATURE)
    assert len(wanted.losses) == mini_batches
    for answer in ranks.run(one_step, given, plan, rows):
        assert answer["metrics"]["loss"] == pytest.approx(np.mean(wanted.losses), rel=1e-4, abs=1e-6)
        assert_close(answer["gradients"], wanted.gradients[-1], 2e-5)
        assert_close(answer["weights"], wanted.weights, 1e-4)


@pytest.mark.parametrize("name", ["grpo DP2 packed", "dapo TP2 bucketed"])
def test_the_comparison_would_see_the_surplus(ranks: Ranks, path: Path, name: str) -> None:
    """Negative control: with all groups that carry a signal another step is made, and no tolerance covers it."""
    layout, mode, keys = CASES[name]
    algorithm = AlgorithmConfig(mini_batches=1, **keys)
    given, rows, chosen = settings(path, layout, algorithm), sampled(path), by_hand(sampled(path))
    wanted = reference.train(load_model(path), chosen, planned(chosen, algorithm, layout, mode, None), algorithm,
                             given.optimizer, TEMPERATURE)
    answer = ranks.run(one_step, given, planned(rows, algorithm, layout, mode, None), rows)[0]
    assert max(tensor_errors(answer["gradients"], wanted.gradients[0]).values()) > 0.05
