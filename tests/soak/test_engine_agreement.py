"""One policy in learner and engine, for each family and each kind of rotary scaling, after training and a push.

Where vLLM's tables are not transformers' bit for bit: `linear` divides positions where transformers divides frequencies
(float32 rounding, so the angles drift apart with the position; the same bits if the factor is a power of two). The
other kinds have the same frequencies.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from engine_fleet import fleet_config, running_fleet
from models import Kind, write_model
from ranks import Rank, Ranks

from siri_megatron.config import AlgorithmConfig, LearnerConfig, ModelConfig, OptimizerConfig, RunConfig
from siri_megatron.data.digit_tokenizer import BOS_ID, EOS_ID, PAD_ID, VOCABULARY, encode, write_tokenizer
from siri_megatron.learner.rope import read_rope
from siri_megatron.learner.rotary import inverse_frequencies
from siri_megatron.learner.settings import LearnerSettings
from siri_megatron.paths import RunDir
from siri_megatron.weights.push import WeightPush

pytestmark = [pytest.mark.soak, pytest.mark.engine]

PROMPTS = [encode("^" + text) for text in ("a1b2c3=", "a9b4d2=", "b4c4d4e4f4=", "a1b2=")]
TOKENS = 120
TOLERANCE = 1e-5
CONTEXT = 512
SIZES: dict[str, Any] = {
    "vocab_size": len(VOCABULARY), "hidden_size": 128, "intermediate_size": 96, "max_position_embeddings": CONTEXT,
    "bos_token_id": BOS_ID, "eos_token_id": EOS_ID, "pad_token_id": PAD_ID, "head_dim": 32}
LINEAR = {"rope_type": "linear", "rope_theta": 1e4, "factor": 4.0}
LLAMA3 = {"rope_type": "llama3", "rope_theta": 1e4, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
          "original_max_position_embeddings": 32}
YARN = {"rope_type": "yarn", "rope_theta": 1e4, "factor": 16.0, "original_max_position_embeddings": 32}
DEFAULT = {"rope_type": "default", "rope_theta": 1e4}

# family, layout, push, rotary settings, and what the control's learner takes them for
MODELS: list[tuple[Kind, str, str, dict[str, Any], dict[str, Any]]] = [
    ("qwen2", "tp", "shm", DEFAULT, {"rope_theta": 9e3}),
    ("qwen3_tied", "pp", "gloo", YARN, {"attention_factor": 1.0}),
    ("llama", "tp", "gloo", LLAMA3, {"factor": 6.0}),
    ("qwen2_tied", "pp", "shm", LINEAR, {"factor": 3.5}),
]


def settings(path: Path, layout: str) -> LearnerSettings:
    return LearnerSettings(ModelConfig(path=path), LearnerConfig(**{layout: 2}, collective_timeout_s=30),
                           OptimizerConfig(lr=1e-2), AlgorithmConfig(), 1.0, "packed", tokens_per_micro_batch=512,
                           context=CONTEXT, seed=1)


def train(learner: Any) -> None:
    for _ in range(3):
        learner.sft_step([(PROMPTS[0], PROMPTS[2], 0.1), (PROMPTS[1], PROMPTS[3], 0.2)], lr=1e-3)


def train_and_push(rank: Rank, given: LearnerSettings, config: RunConfig, run_dir: RunDir) -> None:
    with rank.learner(given) as learner:
        train(learner)
        push = WeightPush(config, run_dir, learner, learner.control.share)
        push.push("trained")
        push.close()


def score(rank: Rank, given: LearnerSettings, sequences: Any, steps: bool) -> list[list[float]]:
    """Log-probs, after the same training (it repeats bit for bit) or before any."""
    with rank.learner(given) as learner:
        if steps:
            train(learner)
        return learner.logprobs(sequences)


@pytest.mark.parametrize(("kind", "layout", "backend", "rope", "lie"), MODELS)
def test_learner_and_engine_agree(tmp_path: Path, kind: Kind, layout: str, backend: str, rope: dict[str, Any],
                                  lie: dict[str, Any]) -> None:
    began = time.monotonic()
    path = write_model(tmp_path / "model", kind, rope_parameters=rope, **SIZES)
    write_tokenizer(path)
    told = shutil.copytree(path, tmp_path / "told")
    config = json.loads((told / "config.json").read_text())
    config["rope_parameters"] |= lie
    (told / "config.json").write_text(json.dumps(config))
    with running_fleet(fleet_config(path, tmp_path / "runs"), engines=1) as fleet, Ranks(2) as ranks:
        ranks.run(train_and_push, settings(path, layout), fleet.with_push(backend), fleet.run_dir)
        samples = [(prompt, sample) for prompt in PROMPTS
                   for sample in fleet.sample(0, prompt, n=4, max_tokens=TOKENS)]
        sequences = [(prompt, sample.token_ids) for prompt, sample in samples]
        own, lied, stale = (ranks.run(score, settings(where, layout), sequences, steps)[0]
                            for where, steps in ((path, True), (told, True), (path, False)))

    def worst(scores: list[list[float]]) -> float:
        return max((torch.tensor(sample.logprobs) - torch.tensor(one)).abs().max().item()
                   for (_, sample), one in zip(samples, scores, strict=True))
    print(f"\nsoak agreement: {kind} {rope['rope_type']}, {layout.upper()}2, {backend}: largest difference "
          f"{worst(own):.1e}, with {lie} {worst(lied):.1e}, untrained {worst(stale):.1e}; "
          f"{time.monotonic() - began:.0f} s")
    assert max(len(sample.token_ids) for _, sample in samples) == TOKENS
    assert worst(own) < TOLERANCE
    assert worst(lied) > 1e-3
    assert worst(stale) > 1e-2


TABLES = """
import json, sys, torch
from vllm.config import VllmConfig, set_current_vllm_config
from vllm.model_executor.layers.rotary_embedding import get_rope
ropes, positions, out = json.loads(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
with set_current_vllm_config(VllmConfig()):
    made = [get_rope(64, positions, rope_parameters=rope, dtype=torch.float32) for rope in ropes]
    torch.save([one.cos_sin_cache for one in made], out)
"""
SAME = {"default": DEFAULT, "linear, power of two": LINEAR,
        "llama3": LLAMA3 | {"original_max_position_embeddings": 8192},
        "yarn": YARN | {"original_max_position_embeddings": 8192, "attention_factor": 1.0}}
DIFFERENT = {"linear": LINEAR | {"factor": 3.0}}


def test_tables_of_the_engine(tmp_path: Path) -> None:
    """Cosines and sines at 131,072 positions."""
    positions, out, ropes = 131072, tmp_path / "tables.pt", SAME | DIFFERENT
    subprocess.run([sys.executable, "-c", TABLES, json.dumps([*ropes.values()]), str(positions), str(out)], check=True,
                   timeout=300, capture_output=True)
    difference = {}
    for (name, rope), theirs in zip(ropes.items(), torch.load(out), strict=True):
        frequencies = inverse_frequencies(read_rope({"rope_parameters": rope}, positions), 64)
        angles = torch.outer(torch.arange(positions, dtype=torch.float32), frequencies)
        difference[name] = (torch.cat((angles.cos(), angles.sin()), -1) - theirs[:positions]).abs().max().item()
    print(f"\nsoak tables: largest difference {difference}")
    assert {name: difference[name] for name in SAME} == dict.fromkeys(SAME, 0.0)
    assert 0 < difference["linear"] < 1e-2
