"""The launch check: every refusal names both values, the rule, and a layout that works."""

from __future__ import annotations

import subprocess
import sys
from contextlib import nullcontext
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from siri_megatron.config import LearnerConfig
from siri_megatron.errors import ConfigError
from siri_megatron.learner.layout import check_layout

QWEN: dict[str, Any] = {
    "model_type": "qwen2", "hidden_size": 1536, "num_hidden_layers": 28, "num_attention_heads": 12,
    "num_key_value_heads": 2, "intermediate_size": 8960, "vocab_size": 151936, "max_position_embeddings": 131072,
    "rms_norm_eps": 1e-6, "rope_theta": 10000, "hidden_act": "silu", "tie_word_embeddings": False,
    "use_sliding_window": False, "sliding_window": 4096, "torch_dtype": "bfloat16"}
"""As DeepSeek-R1-Distill-Qwen-1.5B's config.json has it (transformers 4 spelling)."""


def refusal(change: dict[str, Any] | None = None, *, context: int = 9000, **layout: Any) -> ConfigError:
    with pytest.raises(ConfigError) as caught:
        check_layout(QWEN | (change or {}), LearnerConfig(**layout), context=context)
    return caught.value


def test_reads_both_spellings_of_rotary_settings() -> None:
    old = check_layout(QWEN | {"rope_theta": 5e5}, LearnerConfig(tp=2, pp=2), context=9000)
    new = check_layout({**QWEN, "rope_theta": None, "rope_parameters": {"rope_type": "default", "rope_theta": 5e5}},
                       LearnerConfig(), context=9000)
    assert old == new
    assert old.rope.base == 5e5
    assert old.head_dim == 128


@pytest.mark.parametrize(("layout", "key", "other"), [
    ({"tp": 4}, "learner.tp=4", "num_key_value_heads=2"), ({"tp": 5}, "learner.tp=5", "num_attention_heads=12"),
    ({"pp": 3}, "learner.pp=3", "num_hidden_layers=28"),
    ({"pp": 2, "vpp": 3}, "learner.pp=2 x learner.vpp=3", "num_hidden_layers=28"),
    ({"vpp": 2}, "learner.vpp=2", "learner.pp=1"),
    ({"sequence_parallel": True}, "learner.sequence_parallel=true", "learner.tp=1"),
    ({"cp": 2, "tp": 5}, "learner.tp=5", "num_attention_heads=12"),
    ({"pp": 2, "overlap": True}, "learner.overlap=true", "learner.dp=1")])
def test_refused_with_both_values(layout: dict[str, Any], key: str, other: str) -> None:
    error = refusal(**layout)
    assert key in error.what
    assert other in error.what
    assert error.rule
    assert "nearest layout that works: learner.tp=" in error.fix


def test_sequence_parallelism_cuts_the_quantum() -> None:
    """Rows are multiples of 8 tokens, so TP16 cannot cut the shortest."""
    large = {"num_attention_heads": 64, "num_key_value_heads": 16}
    assert "multiples of 8" in refusal(large, tp=16, sequence_parallel=True).what
    for layout in (LearnerConfig(tp=16), LearnerConfig(tp=8, sequence_parallel=True)):
        check_layout(QWEN | large, layout, context=9000)


@pytest.mark.parametrize(("layout", "fix"), [
    ({"pp": 2, "vpp": 3}, "learner.tp=1 learner.pp=2 learner.dp=1 learner.vpp=2"),
    ({"dp": 4, "vpp": 2}, "learner.tp=1 learner.pp=1 learner.dp=4 learner.vpp=1"),
    ({"dp": 2, "sequence_parallel": True}, "learner.tp=1 learner.pp=1 learner.dp=2 learner.sequence_parallel=false"),
    ({"tp": 4, "cp": 2}, "learner.tp=2 learner.pp=2 learner.dp=1"),
    ({"pp": 3, "cp": 3}, "learner.tp=1 learner.pp=1 learner.dp=3"),
    ({"pp": 2, "overlap": True}, "learner.tp=1 learner.pp=2 learner.dp=1 learner.overlap=false")])
def test_what_else_changes_is_said(layout: dict[str, Any], fix: str) -> None:
    assert refusal(**layout).fix == f"nearest layout that works: {fix}"


def test_nearest_keeps_the_number_of_learners() -> None:
    assert refusal(tp=4).fix.endswith("learner.tp=2 learner.pp=2 learner.dp=1")


models = st.fixed_dictionaries({"num_hidden_layers": st.integers(1, 30), "num_key_value_heads": st.integers(1, 16),
                                "intermediate_size": st.integers(8, 400), "head_dim": st.just(64)})
layouts = st.builds(LearnerConfig, tp=st.integers(1, 16), pp=st.integers(1, 8), dp=st.integers(1, 3),
                    cp=st.integers(1, 3), vpp=st.integers(1, 4), sequence_parallel=st.booleans(), overlap=st.booleans())


@given(sizes=models, per_group=st.integers(1, 4), wanted=layouts)
def test_nearest_works(sizes: dict[str, int], per_group: int, wanted: LearnerConfig) -> None:
    """The proposal, laid over the wanted layout as a user would, passes and has as many learners."""
    model = QWEN | sizes | {"num_attention_heads": sizes["num_key_value_heads"] * per_group}
    try:
        check_layout(model, wanted, context=9000)
    except ConfigError as error:
        proposed = dict(word.removeprefix("learner.").split("=") for word in error.fix.split() if "=" in word)
        layout = LearnerConfig.model_validate(wanted.model_dump() | proposed)
        assert layout.world_size == wanted.world_size
        check_layout(model, layout, context=9000)


@given(sizes=models, per_group=st.integers(1, 4), wanted=layouts)
def test_refused_exactly(sizes: dict[str, int], per_group: int, wanted: LearnerConfig) -> None:
    heads, layers = sizes["num_key_value_heads"] * per_group, sizes["num_hidden_layers"]
    possible = ((wanted.pp > 1 or wanted.vpp == 1)
                and (not wanted.sequence_parallel or wanted.tp in (2, 4, 8))
                and (not wanted.overlap or wanted.dp > 1 or wanted.cp > 1)
                and all(size % wanted.tp == 0 for size in (heads, heads // per_group, sizes["intermediate_size"]))
                and layers in range(0, 31, wanted.pp * wanted.vpp))
    with nullcontext() if possible else pytest.raises(ConfigError):
        check_layout(QWEN | sizes | {"num_attention_heads": heads}, wanted, context=9000)


@given(wanted=layouts)
def test_plans_suit_the_schedule(wanted: LearnerConfig) -> None:
    """The interleaved schedule takes micro-batches in groups of pp."""
    assert wanted.micro_batch_multiple % wanted.pp == 0
    assert (wanted.micro_batch_multiple == 1) == (wanted.pp == 1)


def test_vocab_never_refused() -> None:
    arch = check_layout(QWEN | {"vocab_size": 151937}, LearnerConfig(tp=2), context=9000)
    assert arch.padded_vocab(2) == 151938
    assert arch.padded_vocab(1) == 151937


def test_too_long_a_context() -> None:
    error = refusal({"max_position_embeddings": 4096}, context=5000)
    assert "5000" in error.what
    assert "max_position_embeddings=4096" in error.what
    assert "904" in error.fix


@pytest.mark.parametrize("change", [
    {"model_type": "gpt2"}, {"hidden_act": "gelu"}, {"use_sliding_window": True}, {"attention_bias": True},
    {"num_hidden_layers": None}, {"quantization_config": {"bits": 4}},
    {"rope_scaling": {"type": "longrope", "factor": 4.0}}, {"layer_types": ["full_attention", "sliding_attention"]},
    {"num_key_value_heads": 5}])
def test_refused_by_name(change: dict[str, Any]) -> None:
    field, value = next(iter(change.items()))
    what = refusal(change).what
    assert field.removesuffix("_scaling") in what or "rotary scaling" in what
    shown = {"rope_scaling": "longrope", "layer_types": "sliding_attention"}.get(field, str(value))
    assert shown in what


def test_needs_no_torch() -> None:
    code = "import sys, siri_megatron.learner.layout, siri_megatron.learner.settings; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], timeout=60).returncode == 0
