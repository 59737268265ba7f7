"""Volumes against rings written out, and which wires they take."""

from __future__ import annotations

from dataclasses import replace

import pytest
from estimate_cases import SMALL

from siri_megatron.config import LearnerConfig
from siri_megatron.estimate.exchange import Exchange
from siri_megatron.estimate.rates import NOMINAL_CORE, Rates
from siri_megatron.estimate.work import ModelWork

WORK = ModelWork.of(SMALL, "float32")
LINK: Rates = replace(NOMINAL_CORE, link_byte_s=1.0, network_byte_s=100.0)


def ring(ranks: int, size: float, *, gather: bool = True) -> float:
    """Bytes that a rank sends in a ring: a reduce-scatter of `ranks` - 1 rounds, then as many to gather."""
    sent = 0.0
    for _ in range(ranks - 1):
        sent += size / ranks
    if gather:
        for _ in range(ranks - 1):
            sent += size / ranks
    return sent


def exchange(per_node: int = 0, **layout: object) -> Exchange:
    return Exchange(WORK, LearnerConfig(**layout), LINK, per_node)


@pytest.mark.parametrize("tp", [1, 2, 4, 8])
@pytest.mark.parametrize(("recompute", "times"), [("none", 4), ("full", 6)])
def test_tensor_parallel_all_reduces(tp: int, recompute: str, times: int) -> None:
    expected = SMALL.layers * times * ring(tp, 300 * SMALL.hidden * 4)
    assert exchange(tp=tp, recompute=recompute).micro_batch_s(300) == pytest.approx(expected)


def test_pipeline_hands_an_activation_on_and_a_gradient_back() -> None:
    assert exchange(pp=2).micro_batch_s(300) == 2 * 300 * SMALL.hidden * 4
    assert exchange(pp=2, vpp=4).micro_batch_s(300) == 8 * 300 * SMALL.hidden * 4


def test_context_parallel_ring() -> None:
    key_value = 300 * 2 * SMALL.groups * SMALL.head_dim * 4
    passed = SMALL.layers * 3 * ring(4, key_value, gather=False)
    assert exchange(cp=4).micro_batch_s(300) == pytest.approx(passed)


@pytest.mark.parametrize("dp", [1, 2, 8])
def test_gradients(dp: int) -> None:
    weights = SMALL.layers * WORK.layer_weights + WORK.head_weights
    assert exchange(dp=dp).gradients_s() == pytest.approx(ring(dp, weights * 4))
    split = exchange(dp=dp, distributed_optimizer=True)
    assert split.gradients_s() == pytest.approx(2 * ring(dp, weights * 4, gather=False))
    assert exchange(dp=dp, overlap=True).gradients_s() == 0.0


def test_groups_that_cross_nodes_take_the_network() -> None:
    within, across = exchange(per_node=8, tp=8).micro_batch_s(300), exchange(per_node=4, tp=8).micro_batch_s(300)
    assert across == pytest.approx(100 * within)
    assert exchange(per_node=8, tp=4, dp=2).gradients_s() * 100 == pytest.approx(
        exchange(per_node=4, tp=4, dp=2).gradients_s())


def test_distributed_optimizer_shares_the_update() -> None:
    on_gpu = replace(LINK, memory_byte_s=1.0)
    whole, shared = (Exchange(WORK, LearnerConfig(dp=4, distributed_optimizer=split), on_gpu, 0).update_s()
                     for split in (False, True))
    assert whole == 4 * shared == (SMALL.layers * WORK.layer_weights + WORK.head_weights) * 32
