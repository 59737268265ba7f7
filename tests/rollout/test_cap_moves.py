"""A cap move costs an engine nothing: over a cycle no restart, no new memory, no other KV cache, nothing preempted.

The learner's half (shapes, places of weights and moments, peak memory) is tests/learner/test_replanning.py.
"""

from __future__ import annotations

import asyncio
import json
import random
import re
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from engine_fleet import EngineFleet
from fake_engine import client_of
from process_table import Process, descendants, living

from siri_megatron.budget.controller import controller_of
from siri_megatron.budget.step_budget import StepBudget
from siri_megatron.config import BudgetConfig, RunConfig
from siri_megatron.data.codec import TextCodec
from siri_megatron.data.digit_tokenizer import VOCABULARY
from siri_megatron.data.prompts import train_prompts
from siri_megatron.launch.driver import name_version
from siri_megatron.reward.verifier import build_verifier
from siri_megatron.rollout.collector import Collector, Progress

pytestmark = pytest.mark.engine

VERSION = "7"
NOISE = 16 * 2**10
"""KiB: half of an engine's KV cache. A server's own objects make its peak of resident memory grow by 1 to 5 % in 8
steps whatever the caps do, in some cycles by more than in the one before; a second cache would be 32 MiB."""
GAUGES = ("vllm:cache_config_info", "vllm:num_preemptions_total")


@dataclass(frozen=True)
class Counters:
    """What a restart or a reallocation would change."""

    processes: frozenset[Process]
    member: dict[str, Any]
    """Its entry in fleet.json: a restart has another incarnation."""
    gauges: tuple[str, ...]
    context: int


def counters(engines: EngineFleet, engine: int) -> Counters:
    lines = engines.get(engine, "/metrics").text.splitlines()
    found = tuple(line for line in lines if line.startswith(GAUGES))
    assert {name for name in GAUGES if any(line.startswith(name) for line in found)} == set(GAUGES)
    context = engines.get(engine, "/v1/models").json()["data"][0]["max_model_len"]
    return Counters(processes(engines, engine), member(engines, engine), found, context)


def member(engines: EngineFleet, engine: int) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(engines.run_dir.fleet.read_text())["engines"][engine]
    return found


def processes(engines: EngineFleet, engine: int) -> frozenset[Process]:
    """The server, and the core below it if it has one."""
    pid = int(member(engines, engine)["pid"])
    return frozenset(descendants(pid) | {process for process in living() if process[0] == pid})


def peak(engines: EngineFleet, engine: int) -> int:
    """KiB of resident memory, the most so far, of the engine's largest process (proc_pid_status(5))."""
    peaks = []
    for pid, _ in processes(engines, engine):
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
        fields = dict(line.split(":", 1) for line in lines if ":" in line)
        peaks.append(int(fields["VmHWM"].split()[0]))
    return max(peaks)


def write_to_every_block(engines: EngineFleet, engine: int) -> None:
    """A page of the KV cache is resident once it was written to, so the peak would rise for as long as there are blocks
    that no request had yet.

    A block that a prompt filled goes to the end of vLLM's queue of free ones (BlockPool.free_blocks): as many different
    prompts as there are blocks take every one.
    """
    now = counters(engines, engine)
    cache = next(line for line in now.gauges if line.startswith("vllm:cache_config_info"))
    labels = dict(re.findall(r'(\w+)="(\d+)"', cache))
    blocks, size = int(labels["num_gpu_blocks"]), int(labels["block_size"])
    assert size < now.context, "a prompt fills a block"
    draw = random.Random(engine)
    prompts = [draw.choices(range(len(VOCABULARY)), k=size) for _ in range(blocks)]
    with ThreadPoolExecutor(8) as pool:
        asked = [pool.submit(engines.sample, engine, prompt, max_tokens=1, seed=None) for prompt in prompts]
        assert all(one.result() for one in asked)


def collect(engines: EngineFleet, config: RunConfig, ledger: Path, budgets: list[StepBudget]) -> list[float]:
    """The mean length of each step, under the weights as they are, which are called VERSION."""
    codec = TextCodec.load(engines.model_dir)
    collector = Collector(config, ledger, train_prompts(config.data, codec), (), build_verifier(config.reward, codec))

    async def work() -> list[float]:
        client = client_of(engines.urls, VERSION, key=engines.key)
        try:
            return [(await collector.collect(budget, VERSION, client, Progress()))["mean_tokens"] for budget in budgets]
        finally:
            await client.close()

    return asyncio.run(work())


def test_a_cap_move_costs_an_engine_nothing(engines: EngineFleet, tmp_path: Path) -> None:
    for url in engines.urls:
        name_version(url, engines.key, VERSION)
    budget = BudgetConfig(schedule="cosine", l_min=16, l_max=128, cycle_steps=8, cycles=1)
    rollout = engines.config.rollout.model_copy(update={"prompts_per_step": 8, "samples_per_prompt": 8})
    config = engines.config.model_copy(update={"budget": budget, "rollout": rollout})
    controller = controller_of(budget, grid=rollout.budget_grid, lag=0)
    both = range(len(engines.urls))
    for engine in both:
        write_to_every_block(engines, engine)
    budgets = [controller.budget(step) for step in range(controller.steps)]
    still = [StepBudget(one.step, one.cycle, one.phase, budget.l_max, one.version) for one in budgets]
    before, peaks = [counters(engines, engine) for engine in both], [[peak(engines, engine) for engine in both]]

    for name, of_cycle in (("still", still), ("moving", budgets)):
        lengths = collect(engines, config, tmp_path / name, of_cycle)
        peaks.append([peak(engines, engine) for engine in both])

    caps = [one.cap for one in budgets]
    assert min(caps) == 16
    assert max(caps) == 128
    assert len(set(caps)) >= 4, "the cap moves"
    assert lengths == caps, "nothing ends early: every sample meets its cap"
    assert [counters(engines, engine) for engine in both] == before
    for start, fixed, moved in zip(*peaks, strict=True):
        assert moved - fixed <= fixed - start + NOISE, "a moving cap takes memory that a fixed one does not"
    assert before[0] != before[1], "negative control: other processes are told apart"
