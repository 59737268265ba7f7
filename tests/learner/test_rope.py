"""Rotary settings and frequencies against transformers' own, for every kind and both spellings."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import LlamaConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from siri_megatron.errors import ConfigError
from siri_megatron.learner.rope import SETTINGS, Rope, read_rope
from siri_megatron.learner.rotary import inverse_frequencies

HEAD_DIM = 64
CONTEXT = 4096


def transformers_tables(config: dict[str, Any], head_dim: int = HEAD_DIM) -> tuple[torch.Tensor, float]:
    """Inverse frequencies and attention factor as transformers computes them for a Llama."""
    made = LlamaConfig(head_dim=head_dim, hidden_size=2 * head_dim, num_attention_heads=2,
                       **{"max_position_embeddings": CONTEXT} | config)
    kind = made.rope_parameters["rope_type"]
    make = LlamaRotaryEmbedding.compute_default_rope_parameters if kind == "default" else ROPE_INIT_FUNCTIONS[kind]
    return make(made)


def assert_same_bits(config: dict[str, Any], head_dim: int = HEAD_DIM) -> Rope:
    rope = read_rope(config, config.get("max_position_embeddings", CONTEXT))
    frequencies, factor = transformers_tables(config, head_dim)
    assert torch.equal(inverse_frequencies(rope, head_dim), frequencies), rope
    assert rope.attention_factor == factor
    return rope


YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 1024}
LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
          "original_max_position_embeddings": 512}
CASES: dict[str, dict[str, Any]] = {
    "default": {"rope_type": "default"},
    "linear": {"rope_type": "linear", "factor": 3.0},
    "llama3": LLAMA3,
    "llama3 of another shape": LLAMA3 | {"factor": 5.0, "low_freq_factor": 2.0, "high_freq_factor": 32.0},
    "yarn": YARN,
    "yarn with its range": YARN | {"beta_fast": 16.0, "beta_slow": 2.0},
    "yarn not truncated": YARN | {"truncate": False},
    "yarn with its factor": YARN | {"attention_factor": 1.5},
    "yarn with mscale": YARN | {"mscale": 0.7, "mscale_all_dim": 1.3},
    "yarn with half an mscale": YARN | {"mscale": 0.7},
    "yarn of factor 1": YARN | {"factor": 1.0, "original_max_position_embeddings": 4096},
}


@pytest.mark.parametrize("base", [10000.0, 500000.0, 1000000])
@pytest.mark.parametrize("case", CASES)
def test_same_bits(case: str, base: float) -> None:
    found = assert_same_bits({"rope_parameters": CASES[case] | {"rope_theta": base}})
    assert found.base == base


@pytest.mark.parametrize("case", CASES)
def test_both_spellings(case: str) -> None:
    """As transformers 5 writes it, as 4 does, and as 4 did before `rope_type`."""
    new = assert_same_bits({"rope_parameters": CASES[case] | {"rope_theta": 5e5}})
    four = assert_same_bits({"rope_theta": 5e5, "rope_scaling": CASES[case]})
    older = {"type" if key == "rope_type" else key: value for key, value in CASES[case].items()}
    assert assert_same_bits({"rope_theta": 5e5, "rope_scaling": older}) == four == new


def test_absent_fields_are_what_transformers_takes_them_for() -> None:
    assert assert_same_bits({}) == Rope()
    assert assert_same_bits({"rope_scaling": None, "rope_theta": 5e5}) == Rope(base=5e5)
    whole = {key: value for key, value in YARN.items() if key != "original_max_position_embeddings"}
    assert assert_same_bits({"rope_scaling": whole}).original_positions == CONTEXT
    above = assert_same_bits({"rope_scaling": YARN, "original_max_position_embeddings": 2048})
    assert above.original_positions == 2048


@settings(max_examples=60)
@given(factor=st.floats(1, 64), original=st.sampled_from([64, 500, 8192]), half=st.integers(1, 64),
       base=st.floats(100, 1e7), low=st.floats(0.5, 4), ratio=st.floats(1.1, 50), truncate=st.booleans())
def test_same_bits_anywhere(factor: float, original: int, half: int, base: float, low: float, ratio: float,
                            truncate: bool) -> None:
    """Any settings, any (even) head."""
    common = {"rope_theta": base, "factor": factor, "original_max_position_embeddings": original}
    for kind in ({"rope_type": "llama3", "low_freq_factor": low, "high_freq_factor": low * ratio},
                 {"rope_type": "yarn", "beta_slow": low, "beta_fast": low * ratio, "truncate": truncate}):
        assert_same_bits({"rope_parameters": common | kind, "max_position_embeddings": original}, 2 * half)


def test_the_comparison_would_see_another_factor() -> None:
    for kind in (LLAMA3, YARN, CASES["linear"]):
        other = read_rope({"rope_parameters": kind | {"factor": kind["factor"] * (1 + 1e-6)}}, CONTEXT)
        assert not torch.equal(inverse_frequencies(other, HEAD_DIM), transformers_tables({"rope_parameters": kind})[0])


REFUSED: list[tuple[dict[str, Any], str, str]] = [
    ({"rope_scaling": {"type": "dynamic", "factor": 2.0}}, "rope_scaling.rope_type='dynamic'", "linear"),
    ({"rope_parameters": {"rope_type": "longrope", "factor": 2.0}}, "rope_parameters.rope_type='longrope'", "yarn"),
    ({"rope_parameters": {"rope_type": ["yarn"]}}, "rope_parameters.rope_type=['yarn']", "yarn"),
    ({"rope_parameters": {"rope_type": "default", "factor": 4.0}}, "factor=4.0", "not a setting of rope_type default"),
    ({"rope_parameters": {"rope_type": "default", "mrope_section": [16, 24, 24]}}, "mrope_section=", "not a setting"),
    ({"rope_parameters": {"rope_type": "default", "partial_rotary_factor": 0.5}}, "partial_rotary_factor=0.5", "not a"),
    ({"rope_parameters": {"full_attention": {"rope_type": "default"}}}, "full_attention=", "not a setting"),
    ({"rope_scaling": {"type": "linear"}}, "rope_scaling.factor=None", "at least 1"),
    ({"rope_scaling": {"type": "linear", "factor": 2}}, "rope_scaling.factor=2", "decimal point"),
    ({"rope_scaling": {"type": "linear", "factor": "2"}}, "rope_scaling.factor='2'", "at least 1"),
    ({"rope_scaling": {"type": "linear", "factor": 0.5}}, "rope_scaling.factor=0.5", "at least 1"),
    ({"rope_scaling": {"type": "linear", "factor": True}}, "rope_scaling.factor=True", "at least 1"),
    ({"rope_scaling": "linear"}, "rope_scaling='linear'", "is a mapping"),
    ({"rope_theta": "10000"}, "rope_theta='10000'", "positive number"),
    ({"rope_theta": 0}, "rope_theta=0", "positive number"),
    ({"rope_theta": 5e5, "rope_parameters": {"rope_theta": 1e4}}, "rope_parameters.rope_theta=10000.0", "500000"),
    ({"rope_parameters": {"rope_type": "linear", "factor": 2.0}, "rope_scaling": {"type": "linear", "factor": 4.0}},
     "rope_scaling={'type': 'linear', 'factor': 4.0}", "one spelling"),
    ({"rope_scaling": LLAMA3 | {"low_freq_factor": None}}, "low_freq_factor=None", "positive number"),
    ({"rope_scaling": LLAMA3 | {"high_freq_factor": 1.0}}, "high_freq_factor=1.0", "above low_freq_factor=1.0"),
    ({"rope_scaling": LLAMA3 | {"original_max_position_embeddings": 512.0}}, "embeddings=512.0", "whole number"),
    ({"rope_scaling": YARN | {"beta_fast": 0.5}}, "beta_fast=0.5", "at least beta_slow=1.0"),
    ({"rope_scaling": YARN | {"truncate": "yes"}}, "truncate='yes'", "true or false"),
    ({"rope_scaling": YARN | {"attention_factor": -1.0}}, "attention_factor=-1.0", "positive number"),
    ({"rope_scaling": YARN | {"factor": 2.0}}, "max_position_embeddings=4096", "factor x original"),
]


@pytest.mark.parametrize(("config", "what", "rule"), REFUSED)
def test_refused_by_name(config: dict[str, Any], what: str, rule: str) -> None:
    with pytest.raises(ConfigError) as caught:
        read_rope(config, CONTEXT)
    assert what in caught.value.what
    assert rule in caught.value.rule
    assert caught.value.fix


def test_every_kind_is_covered() -> None:
    assert {case["rope_type"] for case in CASES.values()} == set(SETTINGS)
