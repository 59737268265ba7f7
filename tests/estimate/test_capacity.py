"""The capacity of a micro-batch from the memory model of real architectures."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
from large_models import CASES

from siri_megatron.batching.lengths import capacity_at
from siri_megatron.config import AlgorithmConfig, LearnerConfig
from siri_megatron.estimate.capacity import micro_bytes
from siri_megatron.learner.architecture import Architecture

SEVEN = Architecture.of(CASES["7b-tp4-pp4"].config)
SIZES = {"tokens_per_micro_batch": 20480, "l_max": 16384, "max_prompt": 2048}
CAPS = (512, 2048, 8192, 16384)


def takes(spec: Any, dtype: str, mode: Any = "packed", **layout: Any) -> Any:
    return micro_bytes(SEVEN, LearnerConfig(tp=4, pp=4, **layout), dtype, spec=spec, mode=mode,
                       algorithm=AlgorithmConfig())


@pytest.mark.parametrize("mode", ["packed", "bucketed"])
@pytest.mark.parametrize(("spec", "dtype"), [("local", "float32"), ("local", "bfloat16"), ("te", "bfloat16")])
def test_with_fused_attention_the_capacity_is_the_same_at_every_cap(spec: str, dtype: str, mode: str) -> None:
    assert [capacity_at(cap, **SIZES, micro_bytes=takes(spec, dtype, mode)) for cap in CAPS] == [20480] * 4


@pytest.mark.parametrize("layout", [{}, {"recompute": "selective"}, {"recompute": "full"}, {"vpp": 7}])
def test_where_scores_are_held_shorter_caps_free_memory_for_the_packs(layout: dict[str, Any]) -> None:
    """Transformer Engine in float32. The peak is reached and not passed, at every cap."""
    memory = takes("te", "float32", **layout)
    found = {cap: capacity_at(cap, **SIZES, micro_bytes=memory) for cap in CAPS}
    peak = memory(20480, 2048 + 16384)
    assert found[16384] == 20480
    assert all(found[low] > found[high] for low, high in pairwise(CAPS))
    for cap, tokens in found.items():
        assert memory(tokens, 2048 + cap) <= peak < memory(tokens + 8, 2048 + cap)


def test_many_samples_in_a_micro_batch_of_few_tokens_are_no_way_round_the_peak() -> None:
    """What AdamW or the export take is no room for micro-batches: 64 tokens of a 7B stay 64."""
    small = {"tokens_per_micro_batch": 64, "l_max": 32, "max_prompt": 32}
    assert [capacity_at(cap, **small, micro_bytes=takes("local", "float32")) for cap in (8, 32)] == [64, 64]
