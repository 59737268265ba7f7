"""config.json read field by field: features, windows, absent fields, values of the wrong kind."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from models import SMALL
from transformers import AutoConfig

from siri_megatron.errors import ConfigError
from siri_megatron.learner.architecture import PLAIN, Architecture
from siri_megatron.learner.families import FAMILIES

SMALL_OF = {family: SMALL | {"model_type": family} for family in FAMILIES}
QWEN2 = SMALL_OF["qwen2"]


def refusal(config: dict[str, Any]) -> ConfigError:
    with pytest.raises(ConfigError) as caught:
        Architecture.of(config)
    assert caught.value.rule
    assert caught.value.fix
    return caught.value


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("absent", ["num_key_value_heads", "head_dim", "rms_norm_eps", "tie_word_embeddings",
                                    "hidden_act"])
def test_as_transformers(family: str, absent: str) -> None:
    """An absent field is what transformers takes it for (Qwen3's heads are 128 wide where nothing is said)."""
    config = {**SMALL_OF[family], "num_attention_heads": 32, "hidden_size": 128, "head_dim": 8}
    config.pop(absent, None)
    arch, made = Architecture.of(config), AutoConfig.for_model(**config)
    assert arch.groups == made.num_key_value_heads
    assert arch.head_dim == (getattr(made, "head_dim", None) or made.hidden_size // made.num_attention_heads)
    assert (arch.norm_eps, arch.tied) == (made.rms_norm_eps, made.tie_word_embeddings)
    assert made.hidden_act == "silu"


def test_null_key_value_heads_are_the_heads() -> None:
    for config in SMALL_OF.values():
        assert Architecture.of(config | {"num_key_value_heads": None}).groups == config["num_attention_heads"]


UNSUPPORTED = {"hidden_act": "gelu", "attention_bias": True, "mlp_bias": True, "attention_dropout": 0.1,
               "partial_rotary_factor": 0.5, "rope_interleaved": True, "use_mrope": True, "is_causal": False,
               "dual_chunk_attention_config": {"chunk_size": 8}, "quantization_config": {"bits": 4}, "num_experts": 8,
               "num_local_experts": 8, "n_routed_experts": 256}


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("field", PLAIN)
def test_refused_by_name(family: str, field: str) -> None:
    value = UNSUPPORTED[field]
    error = refusal(SMALL_OF[family] | {field: value})
    assert error.what.startswith(f"{field}={value!r}")
    assert error.rule.startswith(f"{field} is {PLAIN[field][0]!r}")
    for plain in PLAIN[field]:
        Architecture.of(SMALL_OF[family] | {field: plain})


@pytest.mark.parametrize("change", [
    {"use_sliding_window": False, "sliding_window": 8, "max_window_layers": 1}, {"sliding_window": 8},
    {"use_sliding_window": True, "sliding_window": None}, {"use_sliding_window": True, "sliding_window": 16384},
    {"layer_types": ["full_attention"] * 2}, {"layer_types": None},
    {"use_sliding_window": True, "sliding_window": 16384, "layer_types": ["full_attention", "sliding_attention"]}])
def test_a_window_that_hides_nothing_passes(change: dict[str, Any]) -> None:
    """R1-Distill-Qwen carries sliding_window=4096 and does not use it."""
    assert Architecture.of(QWEN2 | change) == Architecture.of(QWEN2)


@pytest.mark.parametrize(("change", "says"), [
    ({"use_sliding_window": True, "sliding_window": 16383}, "use_sliding_window=True with sliding_window=16383"),
    ({"layer_types": ["full_attention", "sliding_attention"]}, "layer_types holds sliding_attention"),
    ({"layer_types": ["linear_attention"] * 2}, "layer_types holds linear_attention"),
    ({"layer_types": ["sliding_attention"], "use_sliding_window": False, "sliding_window": 64}, "layer_types holds"),
    ({"use_sliding_window": True, "sliding_window": "4096"}, "sliding_window='4096'"),
    ({"use_sliding_window": "false"}, "use_sliding_window='false'")])
def test_a_window_in_use_is_refused(change: dict[str, Any], says: str) -> None:
    assert says in refusal(QWEN2 | change).what


WHOLE = ("num_hidden_layers", "hidden_size", "num_attention_heads", "num_key_value_heads", "intermediate_size",
         "vocab_size", "max_position_embeddings", "head_dim")


@given(field=st.sampled_from(WHOLE), value=st.one_of(st.integers(max_value=0), st.floats(), st.text(), st.booleans(),
                                                     st.lists(st.integers())))
def test_a_size_of_the_wrong_kind_is_named(field: str, value: Any) -> None:
    assert refusal(QWEN2 | {field: value}).what.startswith(f"{field}={value!r}")


@pytest.mark.parametrize("field", WHOLE[:3] + WHOLE[4:7])
def test_a_missing_size_is_named(field: str) -> None:
    assert refusal({key: value for key, value in QWEN2.items() if key != field}).what.startswith(f"{field}=None")


@pytest.mark.parametrize("change", [
    {"rms_norm_eps": "1e-06"}, {"rms_norm_eps": 0}, {"rms_norm_eps": float("nan")}, {"rms_norm_eps": True},
    {"tie_word_embeddings": "true"}, {"tie_word_embeddings": 1}, {"model_type": None}, {"model_type": "gpt2"},
    {"model_type": ["qwen2"]}, {"rope_theta": -1.0}])
def test_a_value_of_the_wrong_kind_is_named(change: dict[str, Any]) -> None:
    field, value = next(iter(change.items()))
    assert refusal(QWEN2 | change).what.startswith(f"{field}={value!r}")


@pytest.mark.parametrize(("change", "values"), [
    ({"num_key_value_heads": 3}, ("num_attention_heads=4", "num_key_value_heads=3")),
    ({"num_key_value_heads": 8}, ("num_attention_heads=4", "num_key_value_heads=8")),
    ({"hidden_size": 34}, ("hidden_size=34", "num_attention_heads=4", "no head_dim")),
    ({"hidden_size": 28}, ("head_dim=7", "hidden_size=28")), ({"head_dim": 9}, ("head_dim=9",))])
def test_heads_that_do_not_fit_are_named(change: dict[str, Any], values: tuple[str, ...]) -> None:
    assert all(value in refusal(QWEN2 | change).what for value in values)


def test_yarn_goes_into_the_softmax_scale() -> None:
    """Cosines and sines times f are logits times f squared."""
    rope = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 4096, "attention_factor": 1.5}
    assert Architecture.of(QWEN2 | {"rope_parameters": rope}).softmax_scale == pytest.approx(2.25 / 8 ** 0.5)
    assert Architecture.of(QWEN2).softmax_scale is None


def test_attention_crosses_the_matrices_where_a_plain_transformer_says() -> None:
    """12 hidden^2 weights a layer and 2 n hidden operations of attention a token: 12 x hidden, and the output beside;
    counted for a real shape (R1-Distill-Qwen-1.5B) from its matrices."""
    plain = QWEN2 | {"hidden_size": 64, "num_attention_heads": 4, "num_key_value_heads": 4, "head_dim": 16,
                     "intermediate_size": 171, "num_hidden_layers": 2, "vocab_size": 64}
    assert Architecture.of(plain).attention_crossover == pytest.approx(12 * 64 + 64 / 2, rel=0.01)
    qwen = QWEN2 | {"hidden_size": 1536, "num_attention_heads": 12, "num_key_value_heads": 2, "head_dim": 128,
                    "intermediate_size": 8960, "num_hidden_layers": 28, "vocab_size": 151936}
    layer = 1536 * 1536 + 2 * 256 * 1536 + 1536 * 1536 + 3 * 1536 * 8960
    assert Architecture.of(qwen).attention_crossover == (28 * layer + 1536 * 151936) // (28 * 1536)
