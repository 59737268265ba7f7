"""Which runs fit a machine's memory, and the change that is proposed for those that do not."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from large_models import R1_DISTILL_QWEN_7B

from siri_megatron.config import RunConfig, load
from siri_megatron.errors import gib
from siri_megatron.estimate.engine import kv_cache_bytes
from siri_megatron.estimate.host import Host, changed, fullest_micro_batch, learner_stages
from siri_megatron.estimate.parameters import model_parameters
from siri_megatron.learner.architecture import Architecture

ROOT = Path(__file__).resolve().parents[2]
GIB = 2**30
MANY = {"prompts_per_step": 4096, "samples_per_prompt": 16}
TINY = {"model_type": "qwen2", "hidden_act": "silu", "hidden_size": 128, "intermediate_size": 384,
        "num_hidden_layers": 4, "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 512,
        "max_position_embeddings": 4096, "rms_norm_eps": 1e-6, "tie_word_embeddings": True}


def config(**sections: Any) -> RunConfig:
    base: dict[str, Any] = {"name": "run", "model": {"path": "m"}, "optimizer": {"lr": 1e-4},
                            "budget": {"l_min": 8, "l_max": 64, "cycle_steps": 4, "cycles": 2},
                            "data": {"max_prompt_tokens": 64}}
    return RunConfig.model_validate(base | sections)


def host(*, learners: bool = True, engines: bool = True, model: dict[str, Any] = TINY) -> Host:
    return Host(Architecture.of(model) if learners else None, 4 * 900_000, engines)


def overridden(given: RunConfig, text: str) -> RunConfig:
    """With the overrides as a user would type them."""
    data = given.model_dump()
    for part in text.split():
        key, value = part.split("=")
        section, name = key.split(".")
        data[section][name] = value
    return RunConfig.model_validate(data)


def test_parts_by_hand() -> None:
    """Two stages x two tensor-parallel ranks, two engines."""
    given = config(learner={"tp": 2, "pp": 2}, engines={"count": 2, "kv_cache_gib": 3})
    first, last = learner_stages(given, Architecture.of(TINY))
    parts = {part.name: part.bytes for part in host().parts(given)}
    assert parts["2 engines x engines.kv_cache_gib=3"] == 6 * GIB
    assert parts["weights of 2 engines"] == 2 * 4 * 900_000
    assert parts["weights, gradients and optimizer of 4 learners"] == 2 * sum(
        stage.parameters + stage.gradients + stage.optimizer for stage in (first, last))
    assert sum(parts.values()) == host().need(given)
    learners = 2 * (first.total + last.total)
    assert host(engines=False).need(given) == learners
    assert host(learners=False).need(given) == host().need(given) - learners


def test_the_tiny_run_fits_a_machine_of_four_gib() -> None:
    """Of which the kernel leaves about 3.8. As a real run takes it: engines of 417 + 561 MiB beside their KV cache,
    learners of 322 + 305, collector and supervisor of 142 + 109 (measured with 1 GiB of KV cache each: 4.8 GiB)."""
    tiny = load(ROOT / "configs/tiny.yaml")
    arch = Architecture.of(json.loads((ROOT / "configs/models/tiny-digits/config.json").read_text()))
    measured = 2 * (417 + 561 + int(1024 * tiny.engines.kv_cache_gib)) + 322 + 305 + 142 + 109
    need = Host(arch, 4 * model_parameters(arch), engines=True).need(tiny)
    assert 0.95 < need / (measured * 2**20) < 1.1
    assert need < 3.75 * GIB
    assert kv_cache_bytes(arch, "float32", 256 * tiny.max_model_len, 1) < tiny.engines.kv_cache_gib * GIB


def test_a_micro_batch_holds_no_more_than_there_is() -> None:
    """Two optimizer steps of 3 prompts x 2 samples with at most 64 + 64 tokens."""
    few = config(rollout={"prompts_per_step": 5, "samples_per_prompt": 2})
    assert fullest_micro_batch(few) == 3 * 2 * 128
    assert fullest_micro_batch(config(batching={"tokens_per_micro_batch": 300})) == 300


@pytest.mark.parametrize(("given", "limit", "wanted"), [
    ({"batching": {"tokens_per_micro_batch": 1 << 20}, "rollout": MANY}, 8, "batching.tokens_per_micro_batch="),
    ({"engines": {"count": 2, "kv_cache_gib": 50}}, 8, "engines.kv_cache_gib="),
    ({"engines": {"count": 8}}, 2, "engines.count=1"),
    ({"learner": {"dp": 8}, "engines": {"count": 1}}, 2.2, "learner.dp=1"),
])
def test_smallest_change_first(given: dict[str, Any], limit: float, wanted: str) -> None:
    made, memory = config(**given), int(limit * GIB)
    assert host().need(made) > memory
    text = host().nearest(made, memory)
    assert wanted in text
    assert len(text.split()) <= 2


def test_recomputation_and_the_sharded_optimizer_are_proposed_where_they_are_enough() -> None:
    """One long sample, so that micro-batches cannot shrink; replicas of a large optimizer state."""
    long = config(budget={"l_min": 8, "l_max": 3000, "cycle_steps": 4, "cycles": 2},
                  batching={"tokens_per_micro_batch": 3064}, engines={"kv_cache_gib": 0.01})
    need = host(engines=False).need(long)
    assert host(engines=False).nearest(long, need - 20 * 2**20) == "learner.recompute=full"
    seven = host(model=R1_DISTILL_QWEN_7B, engines=False)
    replicas = config(learner={"dp": 2, "recompute": "full"}, batching={"tokens_per_micro_batch": 128})
    assert seven.nearest(replicas, seven.need(replicas) - GIB) == "learner.distributed_optimizer=true"


runs = st.builds(
    lambda tokens, count, kv, dp, pp, recompute: config(
        rollout=MANY, batching={"tokens_per_micro_batch": tokens}, engines={"count": count, "kv_cache_gib": kv},
        learner={"dp": dp, "pp": pp, "recompute": recompute}),
    st.integers(128, 1 << 18), st.integers(1, 4), st.floats(0.01, 20), st.integers(1, 4), st.sampled_from([1, 2]),
    st.sampled_from(["none", "full"]))


@given(runs, st.floats(0.2, 1), st.booleans(), st.booleans())
def test_nearest_fits(made: RunConfig, share: float, learners: bool, engines: bool) -> None:
    run = host(learners=learners, engines=engines or not learners)
    limit = int(run.need(made) * share) - 1
    text = run.nearest(made, limit)
    if text.startswith("take a machine"):
        assert limit < 4 * GIB
    else:
        assert run.need(overridden(made, text)) <= limit


def test_what_cannot_fit_is_said() -> None:
    seven = host(model=R1_DISTILL_QWEN_7B)
    assert seven.nearest(config(), 8 * GIB).startswith("take a machine with ")


def test_changed_leaves_the_rest_alone() -> None:
    made = config()
    assert changed(made, {"learner.recompute": "full"}) == config(learner={"recompute": "full"})
    assert changed(made, {}) == made


def test_sizes_are_readable() -> None:
    assert [gib(5 * 2**20), gib(3 * GIB)] == ["5.00 MiB", "3.00 GiB"]


def test_workers_of_an_engine_are_processes() -> None:
    """Weights and KV cache are shared out over them, whatever a Python process takes comes anew for each."""
    from siri_megatron.estimate.host import CORE_BYTES, ENGINE_BYTES, WORKER_BYTES, engine_bytes

    assert engine_bytes(1) == ENGINE_BYTES
    assert engine_bytes(2) - ENGINE_BYTES == CORE_BYTES + WORKER_BYTES
    assert engine_bytes(4) - engine_bytes(2) == 2 * WORKER_BYTES
