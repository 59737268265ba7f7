"""The initial model: loadable by transformers, a function of the seed, initialised as stated."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch

from siri_megatron.data import chain_sum
from siri_megatron.errors import ConfigError
from siri_megatron.learner.init_model import build_initial_model, initial_weights, weight_shapes
from siri_megatron.sft_config import InitConfig, SftConfig

SFT = {"name": "t", "output": "out", "optimizer": {"lr": 1e-3},
       "stages": [{"teacher": "clean", "steps": 1, "tokens_per_step": 64}]}


def config(**changes: object) -> SftConfig:
    return SftConfig.model_validate({**SFT, "init": {}, **changes})


def test_transformers_loads_every_tensor(tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    build_initial_model(config(), tmp_path)
    model, report = AutoModelForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    assert model.config.tie_word_embeddings
    assert sum(parameter.numel() for parameter in model.parameters()) == 300160
    for name, tensor in initial_weights(InitConfig(), 32, seed=1).items():
        assert torch.equal(model.state_dict()[name], tensor), name
    assert AutoTokenizer.from_pretrained(tmp_path).eos_token_id == model.generation_config.eos_token_id == 31


def test_a_function_of_the_seed() -> None:
    first, again, other = (initial_weights(InitConfig(), 32, seed) for seed in (1, 1, 2))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["model.embed_tokens.weight"], other["model.embed_tokens.weight"])


def test_standard_deviations_are_as_stated() -> None:
    init = InitConfig(hidden_size=256, ffn_size=1024, embedding_std=0.1, residual_gain=0.5)
    weights = initial_weights(init, 32, seed=0)
    expected = {"model.embed_tokens.weight": 0.1,
                "model.layers.1.self_attn.q_proj.weight": 1 / math.sqrt(256),
                "model.layers.0.self_attn.o_proj.weight": 0.5 / math.sqrt(256),
                "model.layers.1.mlp.down_proj.weight": 0.5 / math.sqrt(1024)}
    for name, std in expected.items():
        assert math.isclose(weights[name].std().item(), std, rel_tol=0.05), name
    assert weights["model.layers.0.self_attn.k_proj.bias"].abs().max() == 0
    assert (weights["model.norm.weight"] == 1).all()


def test_shapes_follow_the_architecture() -> None:
    shapes = weight_shapes(InitConfig(hidden_size=64, heads=4, kv_heads=1, layers=3), 21)
    assert shapes["model.embed_tokens.weight"] == (21, 64)
    assert shapes["model.layers.2.self_attn.k_proj.weight"] == (16, 64)
    assert "model.layers.3.input_layernorm.weight" not in shapes


def test_the_vocabulary_is_the_family_s(tmp_path: Path) -> None:
    build_initial_model(config(data={"source": "chain_sum"}), tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["vocab_size"] == len(chain_sum.ALPHABET) + 3
    assert "-" in json.loads((tmp_path / "tokenizer.json").read_text())["model"]["vocab"]


def test_refuses_a_config_with_a_model(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="nothing to initialise"):
        build_initial_model(config(init=None, model_path="there"), tmp_path)
