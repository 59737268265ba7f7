"""Published models: their config.json gives the architecture and the tensors that transformers makes of it."""

from __future__ import annotations

from math import prod
from typing import Any

import pytest
import torch
from published import PUBLISHED, REFUSED
from transformers import AutoConfig, AutoModelForCausalLM

from siri_megatron.errors import ConfigError
from siri_megatron.learner.architecture import Architecture
from siri_megatron.weights.names import stage_entries, tensors
from siri_megatron.weights.shards import local_shape


def of_transformers(config: dict[str, Any]) -> tuple[Any, Any]:
    """transformers' own config object and its model without storage."""
    fields = dict(config)
    made = AutoConfig.for_model(fields.pop("model_type"), **fields)
    with torch.device("meta"):
        return made, AutoModelForCausalLM.from_config(made)


@pytest.mark.parametrize("name", PUBLISHED)
def test_architecture_and_tensors_are_those_of_transformers(name: str) -> None:
    config, model = of_transformers(PUBLISHED[name].config)
    arch = Architecture.of(PUBLISHED[name].config)
    attention = model.model.layers[0].self_attn
    assert (arch.layers, arch.heads, arch.groups) == (
        len(model.model.layers), config.num_attention_heads, config.num_key_value_heads)
    assert (arch.head_dim, arch.norm_eps) == (attention.head_dim, config.rms_norm_eps)
    assert arch.max_positions == config.max_position_embeddings
    rope = config.rope_parameters
    assert (arch.rope.kind, arch.rope.base, arch.rope.factor) == (
        rope["rope_type"], rope["rope_theta"], rope.get("factor", 1.0))
    assert arch.softmax_scale is None
    assert arch.tied == config.tie_word_embeddings
    shapes = {key: tuple(value.shape) for key, value in model.state_dict().items()
              if not (arch.tied and key == "lm_head.weight")}
    assert {part.name: part.shape for part in tensors(arch)} == shapes
    assert sum(prod(part.shape) for part in tensors(arch)) == PUBLISHED[name].parameters


@pytest.mark.parametrize(("name", "tp"), [("DeepSeek-R1-Distill-Qwen-7B", 4), ("Llama-3.3-70B-Instruct", 8),
                                          ("SmolLM2-135M", 3), ("Qwen3-0.6B", 8)])
def test_shards_add_up(name: str, tp: int) -> None:
    arch = Architecture.of(PUBLISHED[name].config)
    for entry in stage_entries(arch, 0, 1):
        ways = 1 if entry.split is None else tp
        assert prod(local_shape(entry, arch, tp)) * ways == sum(prod(part.shape) for part in entry.parts)


@pytest.mark.parametrize("name", REFUSED)
def test_refused_by_name(name: str) -> None:
    fields, named = REFUSED[name]
    with pytest.raises(ConfigError) as caught:
        Architecture.of(PUBLISHED["Qwen2.5-7B-Instruct"].config | fields)
    assert caught.value.what.startswith(f"{named}={fields[named]!r}")
    assert named in caught.value.rule
    assert caught.value.fix


def test_the_families_of_the_refused_are_known_to_transformers() -> None:
    """Negative control: they are refused as what they are, not for a slip in their name."""
    for fields, named in REFUSED.values():
        if named == "model_type":
            assert AutoConfig.for_model(fields["model_type"]).model_type == fields["model_type"]
