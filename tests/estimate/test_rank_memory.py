"""Properties of the memory model that need no model to be built."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from large_models import CASES

from siri_megatron.config import AlgorithmConfig, LearnerConfig
from siri_megatron.estimate import memory
from siri_megatron.estimate.engine import engine_memory, kv_cache_bytes
from siri_megatron.estimate.memory import in_flight, learner_memory
from siri_megatron.learner.architecture import Architecture
from siri_megatron.learner.layout import faults

ARCHES = {name: Architecture.of(case.config) for name, case in CASES.items()}
SEVEN = ARCHES["7b-tp4-pp4"]
layouts = st.builds(LearnerConfig, tp=st.sampled_from([1, 2, 4]), pp=st.sampled_from([1, 2, 4]),
                    dp=st.sampled_from([1, 2]), cp=st.sampled_from([1, 2]), vpp=st.sampled_from([1, 2]),
                    sequence_parallel=st.booleans(), distributed_optimizer=st.booleans(),
                    recompute=st.sampled_from(["none", "selective", "full"]))
cases = st.fixed_dictionaries({
    "arch": st.sampled_from(list(ARCHES.values())), "layout": layouts,
    "dtype": st.sampled_from(["float32", "bfloat16"]), "spec": st.sampled_from(["local", "te"]),
    "mode": st.sampled_from(["packed", "bucketed"]), "micro_batches": st.integers(1, 32),
    "algorithm": st.builds(AlgorithmConfig, kl_coef=st.sampled_from([0.0, 0.1]),
                           entropy_coef=st.sampled_from([0.0, 0.1])),
    "tokens": st.integers(8, 40000), "longest": st.integers(8, 40000)})


def ranks(case: dict[str, Any], **changes: Any) -> tuple[memory.RankMemory, ...]:
    case = case | changes
    assume(not any(faults(case["arch"], case["layout"])))
    return learner_memory(case.pop("arch"), case.pop("layout"), case.pop("dtype"), **case)


def relaid(case: dict[str, Any], **changes: Any) -> tuple[memory.RankMemory, ...]:
    return ranks(case, layout=case["layout"].model_copy(update=changes))


@given(cases, st.sampled_from(["tokens", "longest", "micro_batches"]), st.integers(1, 30000))
def test_grows_with_tokens(case: dict[str, Any], key: str, more: int) -> None:
    for before, after in zip(ranks(case), ranks(case, **{key: case[key] + more}), strict=True):
        assert all(getattr(after, name) >= value for name, value in vars(before).items() if name != "backward")
        assert after.micro_batches >= before.micro_batches
        assert after.total >= before.total
        assert after.micro_batches > before.micro_batches or key != "tokens"


@given(cases)
def test_shared_by_dp(case: dict[str, Any]) -> None:
    shares = case["layout"].dp * case["layout"].cp
    whole, shared = relaid(case, distributed_optimizer=False), relaid(case, distributed_optimizer=True)
    for one, other in zip(whole, shared, strict=True):
        assert other.optimizer == pytest.approx(one.optimizer / shares, abs=1)
        assert replace(other, optimizer=0, between=0, allocator=0) == replace(one, optimizer=0, between=0, allocator=0)


@given(cases)
def test_allocator_of_a_gpu_alone(case: dict[str, Any]) -> None:
    """A share of what the tensors take; the process and what lies on the host have none."""
    for rank in ranks(case):
        tensors = rank.on_device - rank.allocator - rank.base
        assert rank.allocator == math.ceil(tensors * memory.ALLOCATOR[case["spec"]])
        assert (rank.allocator > 0) == (case["spec"] == "te")


@given(cases)
def test_recompute_never_raises(case: dict[str, Any]) -> None:
    for none, full in zip(relaid(case, recompute="none"), relaid(case, recompute="full"), strict=True):
        assert full.activations <= none.activations


@given(cases, st.sampled_from(["tp", "pp", "dp", "cp"]))
def test_more_ranks_never_raise_what_is_held(case: dict[str, Any], key: str) -> None:
    """But for the copy of a tied embedding, which a last stage of its own has."""
    assume(key != "pp" or case["layout"].pp > 1 or not case["arch"].tied)
    before, after = ranks(case), relaid(case, **{key: 2 * getattr(case["layout"], key)})
    for name in ("parameters", "gradients", "optimizer", "reference"):
        assert max(getattr(rank, name) for rank in after) <= max(getattr(rank, name) for rank in before)


@given(cases)
def test_sequence_parallelism_never_raises(case: dict[str, Any]) -> None:
    assume(case["layout"].tp > 1)
    for off, on in zip(relaid(case, sequence_parallel=False), relaid(case, sequence_parallel=True), strict=True):
        assert on.activations <= off.activations


def test_by_hand() -> None:
    """7B in bfloat16 at tp4 x pp4, 1,024 tokens: each number from the formulas of the docstrings."""
    first, *_, last = learner_memory(SEVEN, LearnerConfig(tp=4, pp=4), "bfloat16", spec="local", mode="packed",
                                     tokens=1024, longest=1024, micro_batches=8, algorithm=AlgorithmConfig())
    layer = 3584 * (3584 + 1024) // 4 + (3584 + 1024) // 4 + 3584 * 3584 // 4 + 3 * 3584 * 18944 // 4 + 2 * 3584
    parameters = 152064 // 4 * 3584 + 7 * layer
    assert first.parameters == 2 * parameters
    assert (first.gradients, first.optimizer, first.reference) == (4 * parameters, 12 * parameters, 0)
    h, q, k, d, a, f = 3584, 896, 128, 128, 7, 4736
    norm = 2 * h * 4 + h * 2 + 4
    per_layer = 2 * norm + 1.1 * ((2 * q + 2 * k) * 2 + 4 * a) + 2 * q + 4 * d * 2 + 5 * f * 2
    assert first.activations == pytest.approx(1024 * 4 * (8 + 4 * d + 2 * h + 7 * per_layer), rel=1e-6)
    assert last.activations == pytest.approx(1024 * (8 + 4 * d + 2 * h + 7 * per_layer + norm), rel=1e-6)
    entries, chunk = 1024 * 38016, (2**25 // 38016) * 38016
    assert last.logits == 2 * 2 * entries + 8 * chunk
    assert first.logits == 0


@pytest.mark.parametrize(("layout", "wanted"), [
    (LearnerConfig(), [1]), (LearnerConfig(pp=4), [4, 3, 2, 1]), (LearnerConfig(pp=2, vpp=2), [5, 3]),
    (LearnerConfig(pp=4, vpp=2), [11, 9, 7, 5])])
def test_in_flight(layout: LearnerConfig, wanted: list[int]) -> None:
    """megatron-core's warm-up passes and the one after them; never more than there are."""
    assert [in_flight(layout, stage, 100) for stage in range(layout.pp)] == wanted
    assert in_flight(layout, 0, 1) == min(wanted[0], layout.vpp)


def test_chunk_and_bucket_are_those_of_the_learner() -> None:
    from siri_megatron.learner import logprobs
    from siri_megatron.weights import export
    assert (memory.CHUNK, memory.EXPORT_BYTES) == (logprobs.CHUNK, export.BUCKET_BYTES)


def test_kv_cache_by_hand() -> None:
    """7B: 28 layers, 4 key heads of 128, bfloat16: 56 KiB a token; with more ranks than heads each keeps one."""
    assert kv_cache_bytes(SEVEN, "bfloat16", 1, 1) == 2 * 28 * 4 * 128 * 2 == 56 * 1024
    assert kv_cache_bytes(SEVEN, "bfloat16", 10, 2) == 5 * 56 * 1024
    assert kv_cache_bytes(SEVEN, "float32", 1, 8) == 28 * 1024


def test_engine_by_hand() -> None:
    found = engine_memory(SEVEN, "bfloat16", tp=2, max_model_len=16384, max_num_seqs=256, kv_tokens=1000)
    assert found.weights == CASES["7b-tp4-pp4"].parameters
    assert found.kv_cache == 1000 * 28 * 1024
    assert found.total == found.weights + found.kv_cache + found.activations + found.base
