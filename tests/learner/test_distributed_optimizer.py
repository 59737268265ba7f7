"""The distributed optimizer and overlapped communication against transformers and torch's AdamW; and whoever reads
weights after an optimizer step reads the new ones."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import grpo_reference as reference
import numpy as np
import pytest
from layout_runs import BUCKET, OVERLAP, SHARDED, TEMPERATURE, Tensors, assert_close, exported, exported_gradients
from models import Kind, load_model, write_model
from ranks import Rank, Ranks, run_ranks

from siri_megatron.batching.plan import StepPlan
from siri_megatron.config import AlgorithmConfig, BatchingConfig, LearnerConfig, ModelConfig, OptimizerConfig
from siri_megatron.learner.settings import LearnerSettings


def settings(path: Path, layout: dict[str, Any], dtype: str = "float32", **optimizer: Any) -> LearnerSettings:
    return LearnerSettings(
        ModelConfig(path=path, dtype=dtype), LearnerConfig(**layout, collective_timeout_s=30.0),
        OptimizerConfig(**{"lr": 1e-3, "weight_decay": 0.1} | optimizer), AlgorithmConfig(), TEMPERATURE, "packed",
        tokens_per_micro_batch=160, context=64, seed=1)


def trained(rank: Rank, given: LearnerSettings, planned: StepPlan, rows: reference.Rows) -> dict[str, Any]:
    with rank.learner(given, bucket=BUCKET) as learner:
        metrics = learner.train_step(planned, rows)
        return {"metrics": metrics, "weights": exported(learner), "gradients": exported_gradients(learner),
                "buckets": sum(len(chunk.bucket_groups) for chunk in learner.ddp)}


def case(path: Path, layout: dict[str, Any]) -> tuple[LearnerSettings, StepPlan, reference.Rows]:
    """Four optimizer steps, each clipped. (Overlap starts with the second: in the first, megatron counts gradients.)"""
    rows = reference.rollouts(6, 4, load_model(path), TEMPERATURE)
    batching = BatchingConfig(tokens_per_micro_batch=160)
    planned = reference.plan(rows, AlgorithmConfig(mini_batches=2), batching, dp=layout.get("dp", 1), multiple=8,
                             cp=layout.get("cp", 1))
    return settings(path, layout, clip_grad=0.3), replace(planned, optimizer_steps=planned.optimizer_steps * 2), rows


def check_against_torch(answers: list[dict[str, Any]], path: Path, given: LearnerSettings, planned: StepPlan,
                        rows: reference.Rows) -> None:
    expected = reference.train(load_model(path), rows, planned, given.algorithm, given.optimizer, TEMPERATURE)
    assert min(expected.norms) > given.optimizer.clip_grad
    clipped = given.optimizer.clip_grad / expected.norms[-1]
    for answer in answers:
        assert answer["metrics"]["loss"] == pytest.approx(np.mean(expected.losses), abs=1e-6)
        assert answer["metrics"]["grad_norm"] == pytest.approx(np.mean(expected.norms), rel=1e-5)
        last = {name: value * clipped for name, value in expected.gradients[-1].items()}
        assert_close(answer["gradients"], last, 2e-5)
        assert_close(answer["weights"], expected.weights, 2e-4)


TWO_RANKS = [({"dp": 2} | OVERLAP, "qwen2_tied"), ({"dp": 2} | SHARDED, "qwen3"),
             ({"dp": 2} | SHARDED | OVERLAP, "qwen2_tied"), ({"cp": 2} | SHARDED | OVERLAP, "llama")]


@pytest.mark.parametrize(("layout", "kind"), TWO_RANKS)
def test_steps_are_those_of_autograd_and_adamw(ranks: Ranks, tmp_path: Path, layout: dict[str, Any],
                                               kind: Kind) -> None:
    path = write_model(tmp_path, kind)
    given, planned, rows = case(path, layout)
    answers = ranks.run(trained, given, planned, rows)
    check_against_torch(answers, path, given, planned, rows)
    assert answers[0]["buckets"] >= 3 or "overlap" not in layout
    again = ranks.run(trained, given, planned, rows)
    for first, second in zip(answers, again, strict=True):  # the same bits
        assert all(np.array_equal(first["weights"][name], second["weights"][name]) for name in first["weights"])


@pytest.mark.parametrize("layout", [{"tp": 2, "dp": 2} | SHARDED | OVERLAP, {"pp": 2, "dp": 2} | SHARDED | OVERLAP,
                                    {"pp": 2, "dp": 2} | OVERLAP])
def test_steps_on_four_ranks(tmp_path: Path, layout: dict[str, Any]) -> None:
    """Tied embeddings: their gradient is summed over the first and the last stage, shard by shard."""
    path = write_model(tmp_path, "qwen2_tied")
    given, planned, rows = case(path, layout)
    check_against_torch(run_ranks(trained, 4, given, planned, rows), path, given, planned, rows)


def read_after_a_step(rank: Rank, given: LearnerSettings, planned: StepPlan, rows: reference.Rows, gather: bool
                      ) -> dict[str, Any]:
    """Weights read straight after the optimizer, and by a second read after a forward pass has gathered them anyway."""
    from siri_megatron.learner import learner as module
    original = module.gather_weights
    if not gather:
        module.gather_weights = lambda _: None
    try:
        with rank.learner(given, bucket=BUCKET) as learner:
            learner.train_step(planned, rows)
            read = exported(learner)
            learner.logprobs(reference.sequences(4))
            return {"read": read, "later": exported(learner)}
    finally:
        module.gather_weights = original


def same(one: Tensors, other: Tensors) -> bool:
    return all(np.array_equal(one[name], other[name]) for name in other)


READS = [(2, {"dp": 2}), (4, {"dp": 2, "tp": 2}), (4, {"dp": 2, "pp": 2})]


@pytest.mark.parametrize(("world", "layout"), READS)
def test_weights_read_after_a_step_are_the_new_ones(tmp_path: Path, world: int, layout: dict[str, Any]) -> None:
    """A push, an export or a probe between the optimizer and the next forward pass; without the gather, other ranks'
    shards are old there."""
    path = write_model(tmp_path, "qwen2_tied")
    given, planned, rows = case(path, layout | SHARDED | OVERLAP)
    with Ranks(world) as ranks:
        answers = ranks.run(read_after_a_step, given, planned, rows, True)
        plain = ranks.run(read_after_a_step, settings(path, layout, clip_grad=0.3), planned, rows, True)
        stale = ranks.run(read_after_a_step, given, planned, rows, False)
    for answer, without in zip(answers, stale, strict=True):
        assert same(answer["read"], answer["later"])
        assert_close(answer["read"], plain[0]["read"], 1e-5)
        assert same(without["later"], answer["later"])
        assert not same(without["read"], answer["read"])
