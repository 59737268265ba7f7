"""Rollouts that stand aside for an evaluation, against engines that are played; with vLLM: test_evaluation_ahead.py."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from fake_engine import FakeEngine, client_of, run_config, serving
from test_collector import STAMP, collector_of, rows_of, run
from test_evaluation import evaluator_of
from test_lowering import HAS, LOWER, Writing

from siri_megatron.config import RunConfig
from siri_megatron.data.digit_tokenizer import encode
from siri_megatron.errors import ConfigError, EngineError
from siri_megatron.rollout.collector import Progress
from siri_megatron.rollout.right_of_way import RightOfWay

ROLLOUT = {"prompts_per_step": 4, "samples_per_prompt": 3, "budget_grid": [4, 8, 12], "timeout_s": 20.0, "lag": 1}
N = {3: "rollout", 2: "evaluation", 1: "rest"}
"""Samples of a request -> what it is for."""


def config_of(place: Path, policy: str, **rollout: Any) -> RunConfig:
    return run_config(place, reproducible=False, rollout=ROLLOUT | rollout,
                      evaluation={"problems": 6, "samples": 2, "budgets": [8, 16], "rollouts": policy})


def kinds(bodies: Iterable[dict[str, Any]]) -> list[str]:
    return [N[body["sampling_params"]["n"]] for body in bodies]


def evaluated_amid(config: RunConfig, engine: FakeEngine, late: bool = False) -> dict[str, Any]:
    """Collect a step, and evaluate once all of its requests are under way; late: then another step is ordered."""

    collector, evaluator = collector_of(config), evaluator_of(config)

    async def work() -> dict[str, Any]:
        async with serving(engine) as urls:
            client = client_of(urls)
            steps = [asyncio.ensure_future(collector.collect(STAMP, "0", client, Progress()))]
            try:
                while len(engine.asked) < 4:
                    await asyncio.sleep(0.01)

                async def evaluating() -> dict[str, Any]:
                    async with collector.right_of_way.evaluating("evaluation start"):
                        return await evaluator.evaluate("start", "0", client, Progress())

                report = asyncio.ensure_future(evaluating())
                await asyncio.sleep(0.05)
                if late:
                    steps.append(asyncio.ensure_future(collector.collect(LOWER, "0", client, Progress())))
                found = await report
                await asyncio.gather(*steps)
                return found
            finally:
                for step in steps:
                    step.cancel()
                await client.close()

    return dict(run(work()))


@dataclass
class Timed(FakeEngine):
    """Notes who is there when a request comes."""

    there: int = 0
    most_beside: int = 0
    """Rollout requests there while an evaluation's one is."""

    async def answer(self, request: web.Request) -> web.StreamResponse:
        rollout = (await request.json())["sampling_params"]["n"] == 3
        self.there += rollout
        if not rollout:
            self.most_beside = max(self.most_beside, self.there)
        try:
            return await super().answer(request)
        finally:
            self.there -= rollout


def test_drained(tmp_path: Path) -> None:
    """What has been sent ends first; what is ordered meanwhile waits."""
    engine = Timed(delay_s=0.3)
    report = evaluated_amid(config_of(tmp_path, "drained"), engine, late=True)
    assert kinds(engine.asked) == ["rollout"] * 4 + ["evaluation"] * 6 + ["rollout"] * 4
    assert engine.most_beside == 0
    assert report["problems"] == 6


def test_beside(tmp_path: Path) -> None:
    """Negative control: without the policy they are there together."""
    engine = Timed(delay_s=0.3)
    evaluated_amid(config_of(tmp_path, "beside"), engine)
    assert engine.most_beside > 0


def test_frozen(tmp_path: Path) -> None:
    """nothing_lost: two groups are aborted with `HAS` tokens each, and go on from there up to the cap of 12."""
    config, engine = config_of(tmp_path, "frozen"), Writing(slow=4)
    evaluated_amid(config, engine)
    assert kinds(engine.asked) == ["rollout"] * 4 + ["evaluation"] * 6 + ["rest"] * 12
    for number, body in enumerate(engine.asked[10:]):
        has = len(body["token_ids"]) - len(engine.asked[number // 3]["token_ids"])
        assert has in HAS
        assert body["sampling_params"]["max_tokens"] == 12 - has  # slime#2260, verl PR#7207
    rows = rows_of(config)
    assert len(rows) == 12
    for row in (rows.rollout(at) for at in range(12)):
        assert row.response_ids[:HAS[row.sample]] == encode("1" * HAS[row.sample])
        assert HAS[row.sample] < len(row.response_ids) == len(row.logprobs) == row.spans[-1]["end"] <= row.cap == 12


@pytest.mark.parametrize("policy", ["cut", "drop"])
def test_frozen_groups_may_be_lowered(tmp_path: Path, policy: str) -> None:
    """A step with a smaller cap is admitted while they are frozen: they end under that one."""
    config, engine = config_of(tmp_path, "frozen", lowered_cap=policy), Writing(slow=4)

    collector = collector_of(config)

    async def work() -> None:
        async with serving(engine) as urls:
            client = client_of(urls)
            collecting = asyncio.ensure_future(collector.collect(STAMP, "0", client, Progress()))
            while len(engine.asked) < 4:
                await asyncio.sleep(0.01)
            async with collector.right_of_way.evaluating("evaluation"):
                collector.admitted(LOWER)
                await asyncio.sleep(0.05)
                assert len(engine.asked) == 4
            await collecting
            await client.close()

    run(work())
    rows = rows_of(config)
    assert set(rows.cap.tolist()) == {LOWER.cap} == {8}
    assert (rows.response_length <= 8).all()
    later = [body["sampling_params"] for body in engine.asked[4:]]
    assert {(body["n"], body["max_tokens"]) for body in later} == {"cut": {(1, 3)}, "drop": {(3, 8)}}[policy]


def test_always_opens() -> None:
    async def work() -> list[str]:
        way, told = RightOfWay("frozen", 5.0), []

        async def rollout(seconds: float) -> None:
            async with way.sending() as [freeze]:
                told.append("sent")
                await asyncio.wait_for(freeze.wait(), seconds)

        first = asyncio.create_task(rollout(5))
        await asyncio.sleep(0)
        with suppress(ConnectionError):
            async with way.evaluating("evaluation"), way.evaluating("another"):
                assert first.done(), "all have been answered"
                second = asyncio.create_task(rollout(0.01))
                await asyncio.sleep(0.05)
                assert told == ["sent"]
                raise ConnectionError("the engines are gone")
        with pytest.raises(TimeoutError):  # it was sent then, and nothing freezes it any more
            await second
        return told

    assert run(work()) == ["sent", "sent"]


def test_bounded() -> None:
    async def work() -> None:
        way = RightOfWay("drained", 0.05)
        async with way.sending() as freezes:
            assert freezes == []
            with pytest.raises(EngineError, match=r"evaluation x: 1 requests of rollouts are on the engines still"):
                async with way.evaluating("evaluation x"):
                    raise AssertionError("it began")
        async with asyncio.timeout(1), way.sending():
            pass

    run(work())


def test_time_limits_hold_the_wait(tmp_path: Path) -> None:
    """A step that stands aside is given the evaluation's time, which waits for as long as the steps may take."""
    beside, frozen = config_of(tmp_path, "beside"), config_of(tmp_path, "frozen")
    assert beside.evaluation_wait_s == 0
    assert frozen.evaluation_wait_s == beside.collect_timeout_s(16) == 2 * 20
    assert frozen.collect_timeout_s(16) == 2 * 20 + 2 * 20 + frozen.evaluation_timeout_s


def test_refused_without_a_lag(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"evaluation\.rollouts=drained with rollout\.lag=0"):
        config_of(tmp_path, "drained", lag=0)
