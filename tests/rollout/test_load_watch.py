"""Polling of the engines' load, and what the client does with it, against engines with a small cache."""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from fake_engine import FakeEngine, client_of, run_config, serving
from test_collector import STAMP, collector_of, content, rows_of, run

from siri_megatron.config import RunConfig
from siri_megatron.data.digit_tokenizer import EOS_ID
from siri_megatron.errors import EngineError
from siri_megatron.rollout import load_watch
from siri_megatron.rollout.collector import Progress
from siri_megatron.rollout.engine_client import EngineClient
from siri_megatron.rollout.fleet import Engine, Fleet, Pushed
from siri_megatron.rollout.kv_limits import Load
from siri_megatron.rollout.load_watch import parse_load
from siri_megatron.rollout.request import Request
from siri_megatron.rollout.vllm_surface import KV_USAGE, PREEMPTIONS, RUNNING, WAITING

PAGE = """# HELP vllm:num_requests_running Number of requests in model execution batches.
# TYPE vllm:num_requests_running gauge
vllm:num_requests_running{engine="0",model_name="policy"} 12.0
vllm:num_requests_running{engine="1",model_name="policy"} 4.0
vllm:num_requests_waiting{engine="0",model_name="policy"} 3.0
vllm:num_requests_waiting_by_reason{engine="0",model_name="policy",reason="capacity"} 3.0
vllm:kv_cache_usage_perc{engine="0",model_name="policy"} 0.25
vllm:kv_cache_usage_perc{engine="1",model_name="policy"} 0.975
vllm:num_preemptions_total{engine="0",model_name="policy"} 1e+01
vllm:num_preemptions_created{engine="0",model_name="policy"} 1.7e+09
"""


def test_parse() -> None:
    assert parse_load(PAGE) == (Load(0.975, 16, 3, 10), [])
    assert parse_load("unauthorized") == (Load(0.0, 0, 0, 0), [KV_USAGE, RUNNING, WAITING, PREEMPTIONS])


def test_the_installed_server_has_these_metrics() -> None:
    spec = find_spec("vllm")
    assert spec
    assert spec.submodule_search_locations
    text = (Path(spec.submodule_search_locations[0]) / "v1/metrics/loggers.py").read_text()
    for name in (KV_USAGE, RUNNING, WAITING, PREEMPTIONS.removesuffix("_total")):
        assert f'name="{name}"' in text
    assert 'name="vllm:no_such_metric"' not in text  # negative control


@dataclass
class Small(FakeEngine):
    """Preempts whenever it is asked for its load with more than `holds` samples in flight."""

    holds: int = 6
    flying: int = 0
    peak: int = 0
    preemptions: int = 0
    delay_s: float = 0.1

    async def answer(self, request: web.Request) -> web.StreamResponse:
        samples = (await request.json())["sampling_params"]["n"]
        self.flying += samples
        self.peak = max(self.peak, self.flying)
        answered = await super().answer(request)
        self.flying -= samples
        return answered

    async def metrics(self, request: web.Request) -> web.StreamResponse:
        assert request.headers["Authorization"] == "Bearer secret"
        self.preemptions += max(0, self.flying - self.holds)
        lines = {KV_USAGE: min(1.0, self.flying / self.holds), RUNNING: self.flying, WAITING: 0,
                 PREEMPTIONS: self.preemptions}
        return web.Response(text="".join(f'{name}{{engine="0"}} {value}\n' for name, value in lines.items()))


def many(place: Path) -> RunConfig:
    return run_config(place, data={"train_problems": 60},
                      rollout={"prompts_per_step": 24, "samples_per_prompt": 3, "budget_grid": [4, 8, 12]})


def collected(config: RunConfig, engine: FakeEngine, steps: int, **limits: int) -> list[dict[str, Any]]:
    async def work() -> list[dict[str, Any]]:
        async with serving(engine) as urls:
            client, collector = client_of(urls, **limits), collector_of(config)
            await asyncio.sleep(0.1)
            try:
                return [await collector.collect(replace(STAMP, step=step), "0", client, Progress())
                        for step in range(steps)]
            finally:
                await client.close()

    found: list[dict[str, Any]] = run(work())
    return found


@pytest.fixture
def fast(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(load_watch, "POLL_S", 0.01)


@pytest.mark.usefixtures("fast")
def test_an_engine_that_preempts_is_sent_less_and_says_the_same(tmp_path: Path) -> None:
    """The first step is sent at once, as if nobody watched; then the limit comes down to what the cache holds."""
    watched, plain = many(tmp_path / "watched"), many(tmp_path / "plain")
    one, other = Small(), Small()
    stats = collected(watched, one, 4, max_num_seqs=100)
    assert one.peak > 36
    assert stats[0]["fleet_preemptions"] > 0
    assert stats[0]["fleet_in_flight"] > 36
    limits = [step["fleet_limit"] for step in stats]
    assert limits[0] < 72
    assert limits[-1] <= 12
    collected(plain, other, 4)
    for step in range(4):
        assert content(rows_of(watched, step)) == content(rows_of(plain, step))


def test_an_engine_without_metrics_is_no_failure_and_is_named_once(tmp_path: Path, fast: None,
                                                                   caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        stats = collected(many(tmp_path), FakeEngine(delay_s=0.1), 2, max_num_seqs=100)
    assert [step["samples"] for step in stats] == [72, 72]
    assert sum("lacks vllm:kv_cache_usage_perc" in record.message for record in caplog.records) == 1
    assert "fleet_limit" not in stats[0]


def test_an_engine_that_leaves_while_it_is_asked_ends_no_watch(fast: None) -> None:
    """The others' limits would stay as they are for the rest of the run, and nobody would know."""
    asked, answer = asyncio.Event(), asyncio.Event()

    @dataclass
    class Slow(FakeEngine):
        async def metrics(self, request: web.Request) -> web.StreamResponse:
            asked.set()
            await answer.wait()
            return web.Response(text=f"{RUNNING} 1\n")

    async def work() -> None:
        async with serving(Slow()) as urls:
            client = EngineClient("secret", connections=4, max_num_seqs=8)
            fleet, pushed = Fleet(1, (Engine(0, urls[0]),)), Pushed("1", frozenset({(0, 0)}))
            try:
                client.follow(fleet, pushed)
                async with asyncio.timeout(60):
                    await asked.wait()
                    client.follow(Fleet(2, ()), pushed)
                    answer.set()
                    await asyncio.sleep(0.1)
                    asked.clear()
                    client.follow(replace(fleet, epoch=3), pushed)
                    await asked.wait()  # it goes on
            finally:
                await client.close()

    run(work())


def test_a_request_beyond_the_context_is_never_sent() -> None:
    """slime #2260: prompt and cap passed the context together, and the engine's 400 was retried for ever."""
    async def work() -> None:
        async with serving(engine) as urls:
            client = client_of(urls, context=32)
            try:
                assert (await client.generate(Request(0, [1] * 20, 1, 12, 1.0, 5, (EOS_ID,)), version="0")).samples
                await client.generate(Request(0, [1] * 20, 1, 13, 1.0, 5, (EOS_ID,)), version="0")
            finally:
                await client.close()

    engine = FakeEngine()
    with pytest.raises(EngineError, match="a prompt of 20 tokens and a cap of 13 make 33, the engines' context is 32"):
        run(work())
    assert len(engine.asked) == 1


def test_a_kept_connection_that_the_server_has_dropped_is_replaced() -> None:
    """The server closes every connection at its second request, unanswered: what a stale keep-alive looks like."""
    engine, dropped = FakeEngine(), list[int]()

    async def work() -> int:
        async with serving(engine) as urls:
            port = int(urls[0].rsplit(":", 1)[1])
            server = await asyncio.start_server(lambda *pair: once(port, dropped, *pair), "127.0.0.1", 0)
            client = client_of([f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"])
            try:
                for number in range(3):
                    await client.generate(Request(number, [1, 2], 1, 8, 1.0, number, (EOS_ID,)), version="0")
            finally:
                await client.close()
                server.close()
        return len(engine.asked)

    assert run(work()) == 3
    assert len(dropped) == 2


async def once(port: int, dropped: list[int], reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Hand one request and its answer through; at the next one hang up."""
    behind_reader, behind = await asyncio.open_connection("127.0.0.1", port)
    behind.write(await reader.read(65536))
    writer.write(await behind_reader.read(65536))
    behind.close()
    if await reader.read(1):
        dropped.append(1)
    writer.close()
