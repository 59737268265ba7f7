"""Megatron learner = engines = transformers: one policy in three programs, before and after training, TP2 and PP2."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from engine_fleet import EngineFleet
from hf_reference import logprobs
from ranks import Rank, Ranks
from transformers import AutoModelForCausalLM

from siri_megatron.checkpoint.hf_export import export_hf
from siri_megatron.config import AlgorithmConfig, LearnerConfig, ModelConfig, OptimizerConfig, RunConfig
from siri_megatron.data.digit_tokenizer import encode
from siri_megatron.learner.settings import LearnerSettings
from siri_megatron.paths import RunDir
from siri_megatron.weights.push import WeightPush

pytestmark = pytest.mark.engine

PROMPTS = [encode("^" + text) for text in ("a1b2c3=", "a9=", "b4c4d4e4f4=", "a1b2=")]
TOLERANCE = 1e-5
Sequences = list[tuple[list[int], list[int]]]


@pytest.fixture(scope="module")
def ranks() -> Iterator[Ranks]:
    with Ranks(2) as pool:
        yield pool


def settings(model_dir: Path, layout: str) -> LearnerSettings:
    return LearnerSettings(ModelConfig(path=model_dir), LearnerConfig(**{layout: 2}, collective_timeout_s=30),
                           OptimizerConfig(lr=1e-2), AlgorithmConfig(), 1.0, "packed", tokens_per_micro_batch=256,
                           context=160, seed=1)


def train(learner: Any, steps: int) -> None:
    for step in range(steps):
        learner.sft_step([(PROMPTS[0], PROMPTS[2], 0.1), (PROMPTS[1], PROMPTS[step % 4], 0.2)], lr=1e-2)


def train_and_push(rank: Rank, given: LearnerSettings, config: RunConfig, run_dir: RunDir, steps: int) -> float:
    with rank.learner(given) as learner:
        train(learner, steps)
        push = WeightPush(config, run_dir, learner, learner.control.share)
        sent = push.push(f"learner-{steps}")
        push.close()
        export_hf(learner, given.model.path, run_dir.root / f"hf-{steps}")
        return sent.get("push_bytes", 0.0)


def train_and_score(rank: Rank, given: LearnerSettings, steps: int, sequences: Sequences) -> list[list[float]]:
    """The same training again (it repeats bit for bit), then log-probs."""
    with rank.learner(given) as learner:
        train(learner, steps)
        return learner.logprobs(sequences)


@pytest.mark.parametrize(("layout", "backend"), [("tp", "shm"), ("pp", "gloo")])
def test_one_policy_in_three_programs(engines: EngineFleet, ranks: Ranks, layout: str, backend: str) -> None:
    given = settings(engines.model_dir, layout)
    for steps in (0, 3):
        sent = ranks.run(train_and_push, given, engines.with_push(backend), engines.run_dir, steps)
        assert sent[0] > 0
        assert sent[1] == 0
        samples = [(prompt, sample) for engine in (0, 1) for prompt in PROMPTS
                   for sample in engines.sample(engine, prompt, n=2, max_tokens=48)]
        own = ranks.run(train_and_score, given, steps, [(prompt, sample.token_ids) for prompt, sample in samples])
        model = AutoModelForCausalLM.from_pretrained(engines.run_dir.root / f"hf-{steps}", dtype=torch.float32)
        for (prompt, sample), learner in zip(samples, own[0], strict=True):
            reference = logprobs(model, prompt, sample.token_ids)
            assert (torch.tensor(sample.logprobs) - reference).abs().max() < TOLERANCE
            assert (torch.tensor(learner) - reference).abs().max() < TOLERANCE
    untrained = AutoModelForCausalLM.from_pretrained(engines.model_dir, dtype=torch.float32)
    stale = max((torch.tensor(sample.logprobs) - logprobs(untrained, prompt, sample.token_ids)).abs().max().item()
                for prompt, sample in samples)
    assert stale > 0.1  # negative control: training moved the policy far enough for a missed push to show
