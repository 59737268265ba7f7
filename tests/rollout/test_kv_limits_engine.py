"""What real engines say of their load. One whose KV cache holds a few samples preempts; less so when that is heeded."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from engine_fleet import EngineFleet, fleet_config, running_fleet, write_tiny_model
from fake_engine import client_of

from siri_megatron.budget.step_budget import StepBudget
from siri_megatron.config import RunConfig
from siri_megatron.data.codec import TextCodec
from siri_megatron.data.digit_tokenizer import encode
from siri_megatron.data.prompts import train_prompts
from siri_megatron.launch.driver import VERSION, name_version
from siri_megatron.reward.verifier import build_verifier
from siri_megatron.rollout.collector import Collector, Progress
from siri_megatron.rollout.kv_limits import Load
from siri_megatron.rollout.load_watch import parse_load
from siri_megatron.rollout.vllm_surface import METRICS

pytestmark = pytest.mark.engine

STEPS, CAP, SEQUENCES = 4, 240, 64
STAMP = StepBudget(step=0, cycle=0, phase="compression", cap=CAP, version=1)


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EngineFleet]:
    """The tiny model takes 1 KiB a token (2 layers x 2 x 2 heads x 32 x 4 bytes): the cache holds 6,000 tokens."""
    place = tmp_path_factory.mktemp("small")
    config = fleet_config(
        write_tiny_model(place / "model"), place / "runs", engines={"kv_cache_gib": 0.006, "max_num_seqs": SEQUENCES},
        budget={"l_min": 16, "l_max": CAP, "cycle_steps": 2, "cycles": 1},
        rollout={"prompts_per_step": 32, "samples_per_prompt": 4})
    with running_fleet(config, engines=1) as fleet:
        name_version(fleet.urls[0], fleet.key, VERSION)
        yield fleet


def collected(fleet: EngineFleet, config: RunConfig, ledger: Path, **limits: int) -> list[dict[str, Any]]:
    codec = TextCodec.load(fleet.model_dir)
    # No token ends a response: every one is as long as the cap, and the cache is needed to the end.
    collector = Collector(config, ledger, train_prompts(config.data, codec), (), build_verifier(config.reward, codec))

    async def work() -> list[dict[str, Any]]:
        client = client_of(fleet.urls, VERSION, key=fleet.key, **limits)
        await asyncio.sleep(0.5)
        try:
            return [await collector.collect(replace(STAMP, step=step), VERSION, client, Progress())
                    for step in range(STEPS)]
        finally:
            await client.close()

    return asyncio.run(work())


def preemptions(fleet: EngineFleet) -> int:
    load, missing = parse_load(fleet.get(0, METRICS).text)
    assert not missing
    return load.preemptions


def loads_while_sampling(fleet: EngineFleet, engine: int) -> list[Load]:
    with ThreadPoolExecutor(1) as pool:
        asked = pool.submit(fleet.sample, engine, encode("^a1b2c3="), n=SEQUENCES, max_tokens=100)
        said = []
        while not asked.done():
            said.append(parse_load(fleet.get(engine, METRICS).text))
    assert all(missing == [] for _, missing in said)
    return [load for load, _ in said]


@pytest.mark.parametrize("engine", [0, 1], ids=["stock", "in process"])
def test_an_engine_says_what_it_runs(engines: EngineFleet, engine: int) -> None:
    """On a busy machine it may answer only before and after a request is served: one of ten must meet it."""
    asked = (loads_while_sampling(engines, engine) for _ in range(10))
    loads = next((loads for loads in asked if any(load.running for load in loads)), [])
    assert loads, "it never said that anything runs"
    assert 0 < max(load.kv_usage for load in loads) < 1


@pytest.mark.soak
def test_fewer_preemptions(small: EngineFleet, tmp_path: Path) -> None:
    before = preemptions(small)
    collected(small, small.config, tmp_path / "plain")
    plain, before = preemptions(small) - before, preemptions(small)
    stats = collected(small, small.config, tmp_path / "watched", max_num_seqs=SEQUENCES)
    watched = preemptions(small) - before
    figures = [{key: value for key, value in step.items() if "fleet" in key or key == "generation_s"} for step in stats]
    print(f"\npreempted without admission {plain}, with it {watched}: {figures}")
    assert plain > 0, "else the cache is too large for this test"
    assert watched < plain
    assert sum(step["fleet_preemptions"] for step in stats) <= watched
    assert min(step["fleet_limit"] for step in stats if "fleet_limit" in step) < SEQUENCES
