"""The collector ahead of the learners: several steps at once, weights of several versions, engines left out."""

from __future__ import annotations

import asyncio
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from fake_engine import FakeEngine, client_of, run_config, serving
from test_collector import STAMP, collect, collector_of, rows_of, run
from test_fleet_changes import Moving
from test_service import collector

from siri_megatron.config import RunConfig
from siri_megatron.data.digit_tokenizer import EOS_ID
from siri_megatron.errors import ConfigError, EngineError, StaleFleet
from siri_megatron.ledger.read import closed_steps
from siri_megatron.ledger.recover import recover
from siri_megatron.paths import RunDir
from siri_megatron.rollout.client import CollectorClient
from siri_megatron.rollout.collector import Progress
from siri_megatron.rollout.engine_client import EngineClient
from siri_megatron.rollout.request import Request

ROLLOUT = {"prompts_per_step": 4, "samples_per_prompt": 3, "budget_grid": [4, 8, 12], "timeout_s": 60.0}
BUDGET = {"l_min": 8, "l_max": 16, "cycle_steps": 8, "cycles": 1}


def lagging(place: Path, lag: int = 1, **rollout: Any) -> RunConfig:
    return run_config(place, reproducible=False, rollout=ROLLOUT | {"lag": lag} | rollout, budget=BUDGET)


def stamp(step: int) -> Any:
    return replace(STAMP, step=step)


def spans_of(body: dict[str, Any], *versions: str) -> list[dict[str, Any]]:
    """The spans of an answer whose first token has the first version, and so on; the last one has the rest."""
    ends = [*range(1, len(versions)), body["spans_end"]]
    return [{"version": version, "start": start, "end": end}
            for version, start, end in zip(versions, [0, *ends], ends, strict=False)]


class Switching(FakeEngine):
    """Answers under several versions each, as an engine does that gets weights in the midst of a request."""

    versions: tuple[str, ...] = ()

    def _choice(self, index: int, rng: Any, cap: int) -> dict[str, Any]:
        choice = super()._choice(index, rng, cap)
        choice["weight_versions"] = spans_of({"spans_end": len(choice["token_ids"])}, *self.versions)
        return choice


def switching(*versions: str) -> Switching:
    engine = Switching()
    engine.versions = versions
    return engine


def under(config: RunConfig, step: int, pushed: str, engine: FakeEngine) -> dict[str, Any]:
    """Collect a step while the engine has confirmed `pushed`."""
    async def work() -> dict[str, Any]:
        async with serving(engine) as urls:
            client = client_of(urls, pushed)
            try:
                return await collector_of(config).collect(stamp(step), str(step), client, Progress())
            finally:
                await client.close()

    return dict(run(work()))


def test_staleness_bounded(tmp_path: Path) -> None:
    """Weights of the step itself and of `lag` steps before are taken, others are not, whoever says so."""
    for step, pushed, versions, mean in ((5, "5", ("5",), 0.0), (6, "4", ("4",), 2.0), (7, "6", ("5", "6", "7"), None)):
        stats = under(lagging(tmp_path, 2), step, pushed, switching(*versions))
        assert stats["weight_version"] == versions[-1]
        assert stats["mixed_versions"] == float(len(versions) > 1)
        assert stats["staleness_max"] == step - int(versions[0])
        assert mean is None or stats["staleness_mean"] == mean
    with pytest.raises(StaleFleet, match="no engine has weight version 3"):
        under(lagging(tmp_path, 2), 3, "0", switching("0"))
    with pytest.raises(EngineError, match="under weight version 0, 1, expected 3 or at most 2 older"):
        under(lagging(tmp_path, 2), 3, "1", switching("0", "1"))
    with pytest.raises(EngineError, match="under weight version 3, 4, expected 3 or at most 2 older"):
        under(lagging(tmp_path, 2), 3, "3", switching("3", "4"))
    with pytest.raises(StaleFleet):
        under(run_config(tmp_path / "0"), 1, "0", switching("0"))


def test_figures_of_staleness_by_hand(tmp_path: Path) -> None:
    stats = under(lagging(tmp_path, 1), 4, "4", switching("3", "4"))
    rows = rows_of(lagging(tmp_path, 1), 4)
    tokens = int(rows.response_length.sum())
    assert stats["staleness_mean"] == pytest.approx(len(rows) / tokens)  # the first token of each response
    assert stats["stale_tokens"] == stats["staleness_mean"]


def test_without_a_lag_nothing_is_said_of_it(tmp_path: Path) -> None:
    assert not {"staleness_mean", "sampling_s", "weight_version"} & collect(run_config(tmp_path), FakeEngine()).keys()


class Patient(FakeEngine):
    """Answers nobody before the requests of two steps are there."""

    async def answer(self, request: web.Request) -> web.StreamResponse:
        answer = await super().answer(request)
        async with asyncio.timeout(20):
            while len(self.asked) < 8:
                await asyncio.sleep(0.01)
        return answer


def test_steps_are_sampled_at_once_and_each_is_asked_once(tmp_path: Path) -> None:
    engine = Patient(delay_s=0.05)
    with collector(lagging(tmp_path), engine) as paths:
        client = CollectorClient(paths)
        for step in (0, 1):
            client.order(stamp(step), str(step), {})
        client.order(stamp(1), "1", {})  # again: nothing new
        first = client.collect(stamp(0), "0", timeout_s=60)
        second = client.collect(stamp(1), "1", timeout_s=60)
        assert closed_steps(paths.ledger) == [0, 1]
        assert len(engine.asked) == 8
        assert min(first["sampling_s"], second["sampling_s"]) > 0
        assert (first["staleness_mean"], second["staleness_mean"]) == (0, 1)
        client.close()


def test_groups_of_two_steps_keep_their_engines(tmp_path: Path) -> None:
    """Group 0 of one step and of the next are two groups; the end of a job forgets its own only."""
    async def work() -> list[tuple[int, str]]:
        one, two = FakeEngine(delay_s=0.1), FakeEngine(delay_s=0.1)
        async with serving(one, two) as urls:
            client = client_of(urls)
            ask = Request(0, (5, 6), 1, 8, 1.0, 7, (EOS_ID,))
            found = await asyncio.gather(*(client.generate(replace(ask, job=job), version="0") for job in ("a", "b")))
            client.forget_groups("a")
            again = [await client.generate(replace(ask, job=job), version="0") for job in ("b", "a")]
            await client.close()
            return [(answer.engine, "") for answer in (*found, *again)]

    (first, _), (second, _), (kept, _), _ = run(work())
    assert {first, second} == {0, 1}
    assert kept == second


def test_left_out_is_given_up(tmp_path: Path) -> None:
    """An engine that a push left out may be paused: its requests go to another, and its answers are not waited for."""
    frozen, sound = FakeEngine(delay_s=600), FakeEngine(version="1")

    async def story(fleet: Moving) -> None:
        while len(frozen.asked) < 2:
            await asyncio.sleep(0.01)
        fleet.version, fleet.confirmed = "", set()  # a push has failed half-way
        fleet.tell()
        await asyncio.sleep(0.1)
        fleet.version, fleet.confirmed = "1", {(1, 0)}
        fleet.tell()

    async def work() -> dict[str, Any]:
        async with serving(frozen, sound) as urls:
            client = EngineClient("secret", connections=8)
            fleet = Moving(client, urls)
            fleet.gets(0)
            fleet.gets(1)
            telling = asyncio.ensure_future(story(fleet))
            try:
                return await collector_of(lagging(tmp_path)).collect(stamp(1), "1", client, Progress())
            finally:
                telling.cancel()
                await client.close()

    assert run(work())["engines"] == {"1": 12}
    assert sorted(Counter(str(body["token_ids"]) for body in frozen.asked + sound.asked).values()) == [1, 1, 2, 2]


def test_open_steps_of_a_crash_are_gone_on_with(tmp_path: Path) -> None:
    """Two steps are open when the collector dies: finished groups are used, the others asked for anew (vime#324)."""
    config, slow = lagging(tmp_path), FakeEngine(delay_s=600)
    with collector(config, FakeEngine(delay_s=1.0), slow) as paths:  # every group has its engine before one is done
        client = CollectorClient(paths)
        for step in (0, 1):
            client.order(stamp(step), str(step), {})

        def give_up(progress: dict[str, int]) -> None:
            if progress["groups_done"] == 2:
                raise InterruptedError

        for step in (0, 1):
            with pytest.raises(InterruptedError):
                client.collect(stamp(step), str(step), timeout_s=60, on_progress=give_up)
        client.close()
    ledger = RunDir(config.run_dir).ledger
    assert recover(ledger) == [f"kept 2 whole groups of step-00000{step}.open, cut 0 torn bytes" for step in (0, 1)]
    RunDir(config.run_dir).collector.unlink()
    again = FakeEngine()
    with collector(config, again) as paths:
        client = CollectorClient(paths)
        client.order(stamp(1), "1", {})
        assert [client.collect(stamp(step), str(step), timeout_s=60)["samples"] for step in (0, 1)] == [12, 12]
        client.close()
    assert len(again.asked) == 4
    assert closed_steps(ledger) == [0, 1]


def test_a_step_that_failed_ahead_is_begun_again_when_it_is_needed(tmp_path: Path) -> None:
    """The only engine was lost while learners trained: the order fails by itself, and the next one samples."""
    from siri_megatron.rollout.fleet import confirm, withdraw

    engine = FakeEngine()
    with collector(lagging(tmp_path), engine) as paths:
        client = CollectorClient(paths)
        withdraw(paths)
        client.order(stamp(1), "1", {})
        with pytest.raises(StaleFleet):
            client.collect(stamp(1), "1", timeout_s=60)
        confirm(paths, "0", [(0, 0)])
        assert client.collect(stamp(1), "1", timeout_s=60)["staleness_max"] == 1
        client.close()


def test_reproducible_runs_have_no_lag(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"reproducible=true with rollout\.lag=1"):
        run_config(tmp_path, rollout=ROLLOUT | {"lag": 1})
