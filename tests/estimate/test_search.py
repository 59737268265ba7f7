from __future__ import annotations

import pytest
from estimate_cases import gpu_setup

from siri_megatron.estimate.room import kv_tokens, misfits, room_at
from siri_megatron.estimate.search import best_split, changes, proposal
from siri_megatron.estimate.setup import Setup
from siri_megatron.estimate.step import at_cap
from siri_megatron.learner.layout import faults

SEVEN, SEVENTY = "DeepSeek-R1-Distill-Qwen-7B", "Llama-3.3-70B-Instruct"

MISFITS = {
    "learner": gpu_setup(SEVEN, learner={"dp": 1}),
    "70b learner and engine": gpu_setup(SEVENTY, learner={"tp": 8, "dp": 1, "sequence_parallel": True},
                                        engines={"count": 8}),
    "too few GPUs": gpu_setup(SEVEN, nodes=1, learner={"tp": 2, "dp": 4}, engines={"count": 8}),
    "no recomputation": gpu_setup(SEVEN, learner={"tp": 1, "dp": 8, "recompute": "none"}, engines={"count": 8}),
    "whole optimizer": gpu_setup(SEVEN, gpu="h200", learner={"tp": 1, "dp": 8, "distributed_optimizer": False}),
}


@pytest.mark.parametrize("setup", MISFITS.values(), ids=MISFITS)
def test_proposal_fits(setup: Setup) -> None:
    assert list(misfits(setup))
    found = proposal(setup)
    assert found
    assert not list(misfits(found))
    assert not list(faults(found.arch, found.config.learner))
    assert found.need <= setup.machine.limit
    assert list(changes(found.config, setup.config))


def test_nearest_first() -> None:
    """What mends it with the fewest doublings, and the same number of learners if that can be."""
    cheap = proposal(MISFITS["whole optimizer"])
    assert cheap
    assert list(changes(cheap.config, MISFITS["whole optimizer"].config)) == ["learner.distributed_optimizer=true"]
    fewer = proposal(MISFITS["too few GPUs"])
    assert fewer
    assert fewer.need <= 8
    same = proposal(MISFITS["no recomputation"])
    assert same
    assert same.learners == 8


def test_what_fits_needs_nothing() -> None:
    setup = gpu_setup()
    assert not list(misfits(setup))
    found = proposal(setup)
    assert found
    assert not list(changes(found.config, setup.config))


def test_nothing_fits() -> None:
    assert proposal(gpu_setup(SEVENTY, nodes=1, learner={"tp": 8, "dp": 1}, engines={"count": 1})) is None


@pytest.mark.parametrize("gpu", ["a100", "h100", "h200"])
def test_more_memory_more_room(gpu: str) -> None:
    room = room_at(gpu_setup(SEVEN, gpu=gpu), 16384)
    assert room.kv_tokens == kv_tokens(gpu_setup(SEVEN, gpu=gpu)) > 0
    assert room.kv_tokens <= kv_tokens(gpu_setup(SEVEN, gpu="h200"))
    assert room.learner.on_device == room.learner.total


def test_cache_takes_what_the_weights_leave() -> None:
    """Hand-made: 0.9 x 80 GB less weights, working memory and process, over bytes a token."""
    setup = gpu_setup(SEVEN)
    engine = room_at(setup, 16384).engine
    left = 0.9 * 80e9 - engine.weights - engine.activations - engine.base
    assert kv_tokens(setup) == int(left) // (2 * 28 * 4 * 128 * 2)
    small = gpu_setup(SEVEN, engines={"extra_args": ["--gpu-memory-utilization", "0.5"]})
    assert kv_tokens(small) < kv_tokens(setup)


def test_split_fits() -> None:
    setup = gpu_setup(nodes=1, rollout={"prompts_per_step": 512})
    split = best_split(setup, 8192)
    assert split
    assert split.step_s <= at_cap(setup, 8192).step_s
    lopsided = gpu_setup(nodes=1, learner={"dp": 1}, engines={"count": 1}, rollout={"prompts_per_step": 512})
    better = best_split(lopsided, 8192)
    assert better
    assert better.step_s < 0.5 * at_cap(lopsided, 8192).step_s
    assert any(text.startswith("engines.count=") for text in better.overrides)


def test_engine_size_is_that_of_the_config() -> None:
    assert gpu_setup(SEVEN, engines={"tp": 4}).engine_gpus == 4
    assert gpu_setup(SEVEN).engine_gpus == 1
