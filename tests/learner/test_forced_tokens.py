"""Forced tokens in the loss: against transformers and the losses as printed, where they are taken out of every list.

ScaleRL's forced interruptions (arXiv 2510.13786) put tokens into a response that the policy did not sample.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import grpo_reference as reference
import pytest
from layout_runs import BUCKET, TEMPERATURE, Mode, assert_close, exported, exported_gradients, tensor_errors
from models import load_model
from ranks import Rank, Ranks

from siri_megatron.batching.plan import StepPlan
from siri_megatron.config import AlgorithmConfig, BatchingConfig, LearnerConfig, ModelConfig, OptimizerConfig
from siri_megatron.learner.settings import LearnerSettings

DECOUPLED = {"old_logprobs": "decoupled", "correction_low": 0.8, "correction_high": 1.3}
CASES: dict[str, tuple[dict[str, Any], Mode, dict[str, Any]]] = {
    "grpo TP2 packed": ({"tp": 2}, "packed", {"loss": "grpo"}),
    "grpo CP2 bucketed, KL, entropy": ({"cp": 2}, "bucketed", {"loss": "grpo", "kl_coef": 0.1, "entropy_coef": 0.05}),
    "dapo CP2 packed": ({"cp": 2}, "packed", {"loss": "dapo"}),
    "gspo DP2 packed": ({"dp": 2}, "packed", {"loss": "gspo", "clip_low": 0.05, "clip_high": 0.05}),
    "dr_grpo TP2 bucketed": ({"tp": 2}, "bucketed", {"loss": "dr_grpo"}),
    "dapo DP2 bucketed, mask": ({"dp": 2}, "bucketed", {"loss": "dapo", "correction": "mask", **DECOUPLED}),
    "grpo PP2 packed, sequence": ({"pp": 2}, "packed", {"loss": "grpo", "correction": "sequence", **DECOUPLED})}

PLAUSIBLE = -3.6
"""A log-prob that a random model gives to one of 37 tokens: no correction would mask it."""


def settings(path: Path, layout: dict[str, Any], algorithm: AlgorithmConfig) -> LearnerSettings:
    return LearnerSettings(ModelConfig(path=path), LearnerConfig(**layout, collective_timeout_s=30.0),
                           OptimizerConfig(lr=reference.LR, weight_decay=0.1, eps=1e-4, clip_grad=1e9), algorithm,
                           TEMPERATURE, "packed", tokens_per_micro_batch=160, context=64, seed=1)


def forced_rows(path: Path, value: float = 0.0) -> reference.Rows:
    """Two of three rollouts have forced tokens, whose stored log-prob is `value`: inside, first, or last."""
    rows = reference.rollouts(6, 4, load_model(path), TEMPERATURE)
    for number, row in enumerate(rows.rollouts):
        length = len(row.response_ids)
        if number % 3 == 0 or length < 4:
            continue
        start = {1: 0, 2: length - 2}.get(number, length // 3)
        row.forced = (start, min(length, start + 2 + number % 4))
        row.logprobs[row.forced[0] : row.forced[1]] = [value] * (row.forced[1] - row.forced[0])
    return rows


def unmarked(rows: reference.Rows) -> reference.Rows:
    return reference.Rows([SimpleNamespace(**{**vars(row), "forced": (0, 0)}) for row in rows.rollouts])


def planned(rows: reference.Rows, algorithm: AlgorithmConfig, layout: dict[str, Any], mode: Mode) -> StepPlan:
    return reference.plan(rows, algorithm, BatchingConfig(mode=mode, tokens_per_micro_batch=160),
                          dp=layout.get("dp", 1), multiple=4, cp=layout.get("cp", 1))


def one_step(rank: Rank, given: LearnerSettings, plan: StepPlan, rows: reference.Rows) -> dict[str, Any]:
    with rank.learner(given, bucket=BUCKET) as learner:
        metrics = learner.train_step(plan, rows)
        return {"metrics": metrics, "gradients": exported_gradients(learner), "weights": exported(learner)}


@pytest.mark.parametrize("name", CASES)
def test_no_gradient_and_no_place_in_the_denominator(ranks: Ranks, path: Path, name: str) -> None:
    layout, mode, keys = CASES[name]
    algorithm = AlgorithmConfig(mini_batches=1, **keys)
    given, rows = settings(path, layout, algorithm), forced_rows(path, PLAUSIBLE)
    plan = planned(rows, algorithm, layout, mode)
    model = load_model(path)
    start = load_model(path) if algorithm.kl_coef else None
    wanted = reference.train(model, rows, plan, algorithm, given.optimizer, TEMPERATURE, reference=start)
    for answer in ranks.run(one_step, given, plan, rows):
        assert_close(answer["gradients"], wanted.gradients[0], 2e-5)
        assert_close(answer["weights"], wanted.weights, 1e-4)
        assert answer["metrics"]["loss"] == pytest.approx(wanted.losses[0], abs=1e-6)
    plain = reference.train(load_model(path), unmarked(rows), plan, algorithm, given.optimizer, TEMPERATURE,
                            reference=start)  # negative control
    assert max(tensor_errors(plain.gradients[0], wanted.gradients[0]).values()) > 5e-3


@pytest.mark.parametrize("keys", [{"loss": "grpo"}, {"loss": "gspo", "correction": "tis", "old_logprobs": "decoupled"}])
def test_their_log_probs_are_never_looked_at(ranks: Ranks, path: Path, keys: dict[str, Any]) -> None:
    """To the bit, whatever stands there: neither the step nor a metric of the mismatch."""
    algorithm = AlgorithmConfig(mini_batches=1, **keys)
    given = settings(path, {"dp": 2}, algorithm)
    zero, other = (ranks.run(one_step, given, planned(rows, algorithm, {"dp": 2}, "packed"), rows)[0]
                   for rows in (forced_rows(path), forced_rows(path, -7.5)))
    assert zero["metrics"] | {"train_s": 0} == other["metrics"] | {"train_s": 0}
    assert all((value == other["weights"][key]).all() for key, value in zero["weights"].items())


def test_metrics_count_sampled_tokens_only(ranks: Ranks, path: Path) -> None:
    algorithm, rows = AlgorithmConfig(mini_batches=1), forced_rows(path)
    metrics = ranks.run(one_step, settings(path, {"tp": 2}, algorithm), planned(rows, algorithm, {}, "packed"),
                        rows)[0]["metrics"]
    model, gaps, entropies = load_model(path), [], []
    for row in rows.rollouts:
        logprobs, entropy = reference.hf_scores(model, row.prompt_ids, row.response_ids, TEMPERATURE)
        start, end = reference.forced_of(row)
        for place in (*range(start), *range(end, len(row.response_ids))):
            gaps.append(abs(float(logprobs[place]) - row.logprobs[place]))
            entropies.append(float(entropy[place]))
    assert metrics["mismatch_mean_abs"] == pytest.approx(sum(gaps) / len(gaps), rel=1e-4)
    assert metrics["mismatch_max_abs"] == pytest.approx(max(gaps), rel=1e-4)
    assert metrics["entropy"] == pytest.approx(sum(entropies) / len(entropies), rel=1e-4)


def test_a_plan_that_counts_them_is_caught(ranks: Ranks, path: Path) -> None:
    """Negative control: masked in the loss, but still in the denominators."""
    algorithm, rows = AlgorithmConfig(mini_batches=1), forced_rows(path)
    given = settings(path, {"tp": 2}, algorithm)
    right = planned(rows, algorithm, {}, "packed")
    wrong = replace(right, token_weights=planned(unmarked(rows), algorithm, {}, "packed").token_weights)
    wanted = reference.train(load_model(path), rows, right, algorithm, given.optimizer, TEMPERATURE)
    found = ranks.run(one_step, given, wrong, rows)[0]
    assert max(tensor_errors(found["gradients"], wanted.gradients[0]).values()) > 5e-3
