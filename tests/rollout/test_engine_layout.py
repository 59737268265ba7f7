"""The invariants of `rollout/engine_layout.py`."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from siri_megatron.errors import ConfigError
from siri_megatron.learner.architecture import Architecture
from siri_megatron.rollout.engine_layout import check_engines, engine_faults

SIZES = st.integers(1, 16)


def model(heads: int, groups: int, ffn: int, vocab: int) -> Architecture:
    return Architecture.of({"model_type": "qwen2", "hidden_act": "silu", "hidden_size": heads * 8, "head_dim": 8,
                            "num_hidden_layers": 2, "num_attention_heads": heads, "num_key_value_heads": groups,
                            "intermediate_size": ffn, "vocab_size": vocab, "max_position_embeddings": 64,
                            "tie_word_embeddings": True})


@given(groups=st.integers(1, 8), each=st.integers(1, 4), ffn=st.integers(1, 64), vocab=st.integers(1, 300), tp=SIZES)
def test_refused_exactly(groups: int, each: int, ffn: int, vocab: int, tp: int) -> None:
    """Against a written-out search: can every worker hold whole heads, and an equal part of the rest?"""
    padded = next(size for size in range(vocab, vocab + 64) if size % 64 == 0)
    heads = groups * each
    works = (all(any(part * tp == size for part in range(size + 1)) for size in (heads, ffn, padded))
             and (any(part * tp == groups for part in range(1, groups + 1))
                  or any(copies * groups == tp for copies in range(1, tp + 1))))
    assert works == (not any(engine_faults(model(heads, groups, ffn, vocab), tp)))


def test_both_numbers_and_a_size_that_works() -> None:
    with pytest.raises(ConfigError, match=r"engines\.tp=3 does not divide .*num_attention_heads=4"):
        check_engines(model(4, 2, 96, 37), 3)
    with pytest.raises(ConfigError) as caught:
        check_engines(model(4, 2, 96, 37), 8)
    assert caught.value.fix == "set engines.tp=4"
    check_engines(model(4, 2, 96, 37), 4)  # two key heads on four workers: each is there twice
