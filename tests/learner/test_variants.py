"""Rotary scaling and head layouts that families allow: log-probs and gradients against transformers.

Sequences run many times past the original context, where scaling decides. What is exported has the stored bits.
"""

from __future__ import annotations

import json
import random
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from grpo_reference import VOCAB, hf_logprobs
from models import Kind, load_model, write_model
from ranks import Rank, Ranks
from safetensors.numpy import load_file

from siri_megatron.config import AlgorithmConfig, LearnerConfig, ModelConfig, OptimizerConfig
from siri_megatron.learner.settings import LearnerSettings

CONTEXT = 512
ORIGINAL = 32
WEIGHT = 1e-3
BASE = {"rope_theta": 1000.0}
LINEAR = BASE | {"rope_type": "linear", "factor": 3.0}
LLAMA3 = BASE | {"rope_type": "llama3", "factor": 5.0, "low_freq_factor": 1.5, "high_freq_factor": 6.0,
                 "original_max_position_embeddings": ORIGINAL}
YARN = BASE | {"rope_type": "yarn", "factor": 16.0, "original_max_position_embeddings": ORIGINAL}
MSCALED = YARN | {"beta_fast": 8.0, "beta_slow": 0.5, "mscale": 2.0, "mscale_all_dim": 0.5, "truncate": False}

# name -> family, layout, fields of config.json
VARIANTS: dict[str, tuple[Kind, str, dict[str, Any]]] = {
    "linear": ("qwen2_tied", "tp", {"rope_parameters": LINEAR}),
    "llama3": ("llama", "pp", {"rope_parameters": LLAMA3}),
    "yarn": ("qwen2", "tp", {"rope_parameters": YARN}),
    "yarn with mscale": ("qwen3", "pp", {"rope_parameters": MSCALED}),
    "tied llama, wide heads": ("llama_tied", "tp", {"head_dim": 24, "rope_parameters": LLAMA3}),
    "llama, every head its key": ("llama", "tp", {"num_key_value_heads": 4, "rope_parameters": YARN}),
    "qwen3 tied, one key for all": ("qwen3_tied", "pp", {"num_key_value_heads": 1, "rms_norm_eps": 1e-2}),
    "qwen2, one key for all": ("qwen2", "pp", {"num_key_value_heads": 1, "rope_parameters": LINEAR}),
}
# What the learner is told instead of the truth: variant, setting of rope_parameters, value.
LIES = [("linear", "factor", 2.9), ("llama3", "factor", 4.0), ("llama3", "high_freq_factor", 3.0),
        ("yarn", "attention_factor", 1.0), ("yarn", "original_max_position_embeddings", 64),
        ("yarn with mscale", "mscale", 1.0), ("yarn with mscale", "beta_slow", 1.5)]


def sequences() -> list[tuple[list[int], list[int]]]:
    rng = random.Random(3)
    return [([rng.randrange(VOCAB) for _ in range(rng.randint(1, 9))], [rng.randrange(VOCAB) for _ in range(length)])
            for length in (480, 3, 210, 64, 1, 333)]


def model(path: Path, variant: str) -> Path:
    kind, _, fields = VARIANTS[variant]
    return write_model(path / "model", kind, max_position_embeddings=CONTEXT, **fields)


def settings(path: Path, layout: str) -> LearnerSettings:
    return LearnerSettings(ModelConfig(path=path), LearnerConfig(**{layout: 2}, collective_timeout_s=30.0),
                           OptimizerConfig(lr=1e-3, clip_grad=1e9), AlgorithmConfig(), 1.0, "packed",
                           tokens_per_micro_batch=768, context=CONTEXT, seed=1)


def answer(rank: Rank, given: LearnerSettings) -> dict[str, Any]:
    """Log-probs in both shapes, the weights, and a supervised step's gradients (exported in the weights' place)."""
    with rank.learner(given) as learner:
        found: dict[str, Any] = {mode: learner.logprobs(sequences(), mode) for mode in ("packed", "bucketed")}
        found["weights"] = {name: value.numpy().copy() for name, value in learner.export_tensors()}
        learner.sft_step([(*sequence, WEIGHT) for sequence in sequences()], lr=1e-3)
        for parameter in learner.chunks[0].parameters():
            parameter.data = parameter.main_grad
        return found | {"gradients": {name: value.numpy().copy() for name, value in learner.export_tensors()}}


def largest_error(found: list[list[float]], path: Path) -> float:
    reference = load_model(path)
    with torch.no_grad():
        wanted = [hf_logprobs(reference, *sequence, 1.0) for sequence in sequences()]
    return max((torch.tensor(own) - one).abs().max().item() for own, one in zip(found, wanted, strict=True))


def gradient_error(found: dict[str, np.ndarray], path: Path) -> float:
    """Largest error of a gradient relative to the largest entry of its tensor."""
    reference = load_model(path)
    sum(-WEIGHT * hf_logprobs(reference, *sequence, 1.0).sum() for sequence in sequences()).backward()
    wanted = {name: value.grad.numpy() for name, value in reference.named_parameters()}
    assert found.keys() == wanted.keys()
    return max(float(np.abs(found[name] - wanted[name]).max() / np.abs(wanted[name]).max()) for name in wanted)


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_variant_is_that_of_transformers(ranks: Ranks, tmp_path: Path, variant: str) -> None:
    path = model(tmp_path, variant)
    stored = load_file(path / "model.safetensors")
    for found in ranks.run(answer, settings(path, VARIANTS[variant][1])):
        assert largest_error(found["packed"], path) < 1e-5
        assert largest_error(found["bucketed"], path) < 1e-5
        assert gradient_error(found["gradients"], path) < 1e-5
        assert found["weights"].keys() == stored.keys()
        assert all(np.array_equal(found["weights"][name], stored[name]) for name in stored)


@pytest.mark.parametrize(("variant", "setting", "value"), LIES)
def test_the_comparison_would_see_another_table(ranks: Ranks, tmp_path: Path, variant: str, setting: str,
                                                value: float) -> None:
    path, told = model(tmp_path, variant), tmp_path / "told"
    shutil.copytree(path, told)
    config = json.loads((told / "config.json").read_text())
    config["rope_parameters"][setting] = value
    (told / "config.json").write_text(json.dumps(config))
    found = ranks.run(answer, settings(told, VARIANTS[variant][1]))[0]
    assert largest_error(found["packed"], path) > 1e-3
    assert largest_error(found["bucketed"], path) > 1e-3
    assert gradient_error(found["gradients"], path) > 1e-2
