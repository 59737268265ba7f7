"""Engines come and go while a step is collected: nothing is lost, nothing counted twice, nothing waits for ever."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from fake_engine import FakeEngine, drop_connection, run_config, serving
from test_collector import STAMP, collect, collector_of, content, rows_of, run

from siri_megatron.config import RunConfig
from siri_megatron.errors import EngineError, StaleFleet
from siri_megatron.rollout import engine_client
from siri_megatron.rollout.collector import Progress
from siri_megatron.rollout.engine_client import EngineClient
from siri_megatron.rollout.fleet import Engine, Fleet, Pushed, accusations, accuse, confirm, read_pushed, withdraw


@dataclass
class Moving:
    """A fleet of fake engines whose membership a test changes while a step is collected."""

    client: EngineClient
    urls: tuple[str, ...]
    epoch: int = 0
    up: dict[int, int] = field(default_factory=dict)  # index -> incarnation
    suspect: set[int] = field(default_factory=set)
    confirmed: set[tuple[int, int]] = field(default_factory=set)
    version: str = "0"

    def tell(self) -> None:
        self.epoch += 1
        engines = (Engine(i, self.urls[i], 1, start, i in self.suspect) for i, start in self.up.items())
        self.client.follow(Fleet(self.epoch, tuple(engines)), Pushed(self.version, frozenset(self.confirmed)))

    def loses(self, index: int) -> None:
        del self.up[index]
        self.tell()

    def gets(self, index: int, incarnation: int = 0, *, confirmed: bool = True) -> None:
        self.up[index] = incarnation
        if confirmed:
            self.confirmed.add((index, incarnation))
        self.tell()


Story = Callable[[Moving], Awaitable[None]]


def collected(config: RunConfig, engines: list[FakeEngine], story: Story, *, up: int | None = None) -> dict[str, Any]:
    """Collect a step while `story` happens; `up`: how many engines serve at first."""

    async def work() -> dict[str, Any]:
        async with serving(*engines) as urls:
            client = EngineClient("secret", connections=8)
            fleet = Moving(client, urls)
            for index in range(len(engines) if up is None else up):
                fleet.gets(index)
            fleet.tell()
            telling = asyncio.ensure_future(story(fleet))
            try:
                return await collector_of(config).collect(STAMP, "0", client, Progress())
            finally:
                telling.cancel()
                await client.close()

    return dict(run(work()))


async def nothing(fleet: Moving) -> None: ...


def asked_of(*engines: FakeEngine) -> Counter[str]:
    return Counter(str(body["token_ids"]) for engine in engines for body in engine.asked)


def never_lost(place: Path) -> RunConfig:
    whole = run_config(place / "whole")
    collect(whole, FakeEngine())
    return whole


def test_stopped_engine_that_leaves_has_its_requests_issued_again_once(tmp_path: Path) -> None:
    """Its connections do not break: only the membership tells. Rows equal those of an untroubled fleet."""
    config, stopped, sound = run_config(tmp_path / "a"), FakeEngine(delay_s=60), FakeEngine()

    async def story(fleet: Moving) -> None:
        while len(stopped.asked) < 2 or len(sound.asked) < 2:
            await asyncio.sleep(0.01)
        fleet.loses(0)

    stats = collected(config, [stopped, sound], story)
    assert stats["engines"] == {"1": 12}
    assert sorted(asked_of(stopped, sound).values()) == [1, 1, 2, 2]
    assert content(rows_of(config)) == content(rows_of(never_lost(tmp_path)))
    assert Counter((row.group, row.sample) for row in content(rows_of(config))).most_common(1)[0][1] == 1


def test_answer_of_an_engine_that_left_is_not_counted(tmp_path: Path) -> None:
    """It answers after it was declared dead: the group has the second attempt's rows only."""
    config, late, sound = run_config(tmp_path), FakeEngine(delay_s=0.6), FakeEngine(delay_s=1.0)

    async def story(fleet: Moving) -> None:
        await asyncio.sleep(0.3)
        fleet.loses(0)

    assert collected(config, [late, sound], story)["engines"] == {"1": 12}
    assert len(rows_of(config)) == 12


def test_engines_that_join_or_are_suspect_get_new_requests_or_none(tmp_path: Path) -> None:
    config, one, two = run_config(tmp_path), FakeEngine(), FakeEngine()

    async def story(fleet: Moving) -> None:
        await asyncio.sleep(0.2)
        assert one.asked == two.asked == []
        fleet.suspect.clear()
        fleet.gets(1, 1, confirmed=False)  # restarted: stale

    def suspected(fleet: Moving) -> Awaitable[None]:
        fleet.suspect.add(0)
        fleet.tell()
        return story(fleet)

    assert collected(config, [one, two], lambda fleet: suspected(fleet), up=1)["engines"] == {"0": 12}
    assert two.asked == []


def test_no_engine_serves_and_it_says_what_it_waits_for(tmp_path: Path) -> None:
    config = run_config(tmp_path)
    config = config.model_copy(update={"rollout": config.rollout.model_copy(update={"timeout_s": 0.5})})
    with pytest.raises(EngineError, match=r"step 0: 0 of 4 groups after 0\.4375 s.*; no engine serves: none is up"):
        collected(config, [FakeEngine()], nothing, up=0)


def test_a_fleet_without_the_weights_asks_for_a_push(tmp_path: Path) -> None:
    """The only engine with the weights dies, the other one came back stale: waiting would not end."""
    config, dying, stale = run_config(tmp_path), FakeEngine(delay_s=60), FakeEngine()

    async def story(fleet: Moving) -> None:
        fleet.gets(1, 1, confirmed=False)
        await asyncio.sleep(0.2)
        fleet.loses(0)

    with pytest.raises(StaleFleet, match=r"no engine has weight version 0, .*engine 1 lacks the weights"):
        collected(config, [dying, stale], story, up=1)
    assert stale.asked == []


def test_second_failure_on_living_engines_is_final(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine_client, "DEATH_S", 0.1)
    broken = [FakeEngine(fault=drop_connection), FakeEngine(fault=drop_connection), FakeEngine(fault=drop_connection)]
    with pytest.raises(EngineError, match=r"(?s)HTTP 500.*; then .*HTTP 500"):
        collected(run_config(tmp_path), broken, nothing)
    assert max(asked_of(*broken).values()) == 2


def test_failures_of_dying_engines_are_bounded(tmp_path: Path) -> None:
    """Every engine dies under the request: as often as MAX_FAILURES, then it is the request that is to blame."""
    config = run_config(tmp_path, rollout={"prompts_per_step": 1, "samples_per_prompt": 3, "budget_grid": [4],
                                           "timeout_s": 20.0})
    engines = [FakeEngine() for _ in range(6)]
    moving: list[Moving] = []

    def deadly(index: int) -> Callable[[dict[str, Any]], web.StreamResponse]:
        def die(body: dict[str, Any]) -> web.StreamResponse:
            asyncio.get_running_loop().call_later(0.05, moving[0].loses, index)
            return web.Response(status=500, text="died")
        return die

    async def story(fleet: Moving) -> None:
        moving.append(fleet)

    for index, engine in enumerate(engines):
        engine.fault = deadly(index)
    with pytest.raises(EngineError, match="no engine could sample group 0"):
        collected(config, engines, story)
    assert [len(engine.asked) for engine in engines] == [1] * engine_client.MAX_FAILURES + [0, 0]


def test_files_of_the_fleet(tmp_path: Path) -> None:
    from fake_engine import run_directory

    paths = run_directory(run_config(tmp_path), ("http://a", "http://b"))
    confirm(paths, "7", [(1, 2), (0, 0)])
    assert read_pushed(paths) == Pushed("7", frozenset({(0, 0), (1, 2)}))
    withdraw(paths)
    withdraw(paths)
    assert read_pushed(paths) == Pushed()
    assert accusations(paths) == {}
    accuse(paths, (1, 2), "slept")
    assert accusations(paths) == {(1, 2): "slept"}
    assert replace(Engine(1, "http://b"), incarnation=2).key == (1, 2)
