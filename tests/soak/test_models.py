"""Models on fresh engines: what a run exported, and one whose output matrix is its own."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
import torch
from engine_fleet import EngineFleet, fleet_config, running_fleet, write_tiny_model
from hf_reference import greedy, logprobs
from ranks import Rank, Ranks
from real_run import REPO, RealRun
from transformers import AutoModelForCausalLM, PreTrainedModel

from siri_megatron.checkpoint.hf_export import export_hf
from siri_megatron.config import AlgorithmConfig, LearnerConfig, ModelConfig, OptimizerConfig, RunConfig
from siri_megatron.data.digit_tokenizer import encode
from siri_megatron.learner.settings import LearnerSettings
from siri_megatron.paths import RunDir
from siri_megatron.weights.push import WeightPush

pytestmark = [pytest.mark.soak, pytest.mark.engine]

PROMPTS = [encode("^" + text) for text in ("a1b2c3=", "a9b4d2=", "b4c4d4e4f4=", "a1b2=", "a5b5c5d5e5f5g5=", "c7d8e1=")]
TOKENS = 48
TOLERANCE = 1e-5


def load(path: Path) -> PreTrainedModel:
    return AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)


def greedy_on(fleet: EngineFleet, engine: int) -> list[list[int]]:
    return [fleet.sample(engine, prompt, temperature=0.0, seed=None, max_tokens=TOKENS)[0].token_ids
            for prompt in PROMPTS]


def greedy_of(model: PreTrainedModel) -> list[list[int]]:
    return [greedy(model, prompt, TOKENS) for prompt in PROMPTS]


def test_export_is_served(never_killed: RealRun, tmp_path: Path) -> None:
    """A phase-end export is a model directory for a vLLM that knows nothing of the run."""
    began = time.monotonic()
    export = never_killed.paths.export / "iter1-expanded"
    with running_fleet(fleet_config(export, tmp_path), engines=1) as fleet:
        served = greedy_on(fleet, 0)
    assert served == greedy_of(load(export))
    assert served != greedy_of(load(REPO / "configs" / "models" / "tiny-digits")), "training changed no greedy answer"
    print(f"\nsoak export: {len(PROMPTS)} x {TOKENS} greedy tokens of a fresh vLLM equal those of transformers; "
          f"{time.monotonic() - began:.0f} s")


def train_and_push(rank: Rank, given: LearnerSettings, config: RunConfig, run_dir: RunDir, out: Path) -> None:
    """Three steps, then weights to the engines and to a directory."""
    with rank.learner(given) as learner:
        for _ in range(3):
            learner.sft_step([(PROMPTS[0], PROMPTS[2], 0.1), (PROMPTS[1], PROMPTS[4], 0.2)], lr=1e-2)
        push = WeightPush(config, run_dir, learner, learner.control.share)
        push.push(out.name)
        push.close()
        export_hf(learner, given.model.path, out)


def worst_difference(fleet: EngineFleet, model: PreTrainedModel) -> float:
    return max((torch.tensor(sample.logprobs) - logprobs(model, prompt, sample.token_ids)).abs().max().item()
               for engine in (0, 1) for prompt in PROMPTS for sample in fleet.sample(engine, prompt, n=2))


def test_untied_model(tmp_path: Path) -> None:
    """lm_head travels as a tensor of its own, from TP2 and from PP2."""
    began = time.monotonic()
    model_dir = write_tiny_model(tmp_path / "model", tied=False)
    worst = []
    with running_fleet(fleet_config(model_dir, tmp_path / "runs")) as fleet, Ranks(2) as ranks:
        assert greedy_on(fleet, 0) == greedy_of(load(model_dir))
        for layout, backend in (("tp", "shm"), ("pp", "gloo")):
            given = LearnerSettings(
                ModelConfig(path=model_dir), LearnerConfig(**{layout: 2}, collective_timeout_s=30),
                OptimizerConfig(lr=1e-2), AlgorithmConfig(), 1.0, "packed", tokens_per_micro_batch=256, context=160,
                seed=1)
            out = tmp_path / f"pushed-{layout}"
            ranks.run(train_and_push, given, fleet.with_push(backend), fleet.run_dir, out)
            pushed = load(out)
            assert not torch.equal(pushed.lm_head.weight, pushed.model.embed_tokens.weight)
            assert [greedy_on(fleet, engine) for engine in (0, 1)] == [greedy_of(pushed)] * 2
            worst.append(worst_difference(fleet, pushed))
        stale = worst_difference(fleet, load(model_dir))
    print(f"\nsoak untied: after pushes from TP2 (shm) and PP2 (gloo) greedy tokens equal transformers', largest "
          f"log-prob difference {max(worst):.1e} (the weights before: {stale:.1e}); {time.monotonic() - began:.0f} s")
    assert max(worst) < TOLERANCE
    assert stale > 0.1
