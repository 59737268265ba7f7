"""Groups in flight when the cap falls: kept, cut or begun anew, each with one cap to the end."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from fake_engine import FakeEngine, client_of, run_config, serving
from test_collector import STAMP, collector_of, rows_of, run

from siri_megatron.budget.step_budget import StepBudget
from siri_megatron.config import RunConfig
from siri_megatron.data.digit_tokenizer import encode
from siri_megatron.errors import ConfigError, DataError
from siri_megatron.rollout.collector import Progress
from siri_megatron.rollout.engine_api import REQUEST_ID, engine_id

ROLLOUT = {"prompts_per_step": 4, "samples_per_prompt": 3, "budget_grid": [4, 8, 12], "timeout_s": 20.0, "lag": 1}
LOWER = StepBudget(step=1, cycle=0, phase="compression", cap=8, version=2)
HAS = (10, 8, 5)
"""Tokens that the samples of an interrupted request have."""


@dataclass
class Writing(FakeEngine):
    """Never ends a first request by itself; what it has when it is aborted is `HAS`. A continuation ends by length."""

    aborted: dict[str, asyncio.Event] = field(default_factory=dict)
    slow: int = 2
    """Requests that are interrupted before they end; the others answer at once."""

    async def answer(self, request: web.Request) -> web.StreamResponse:
        body = await request.json()
        if body["sampling_params"]["n"] == 1 or len(self.asked) >= self.slow:
            return await super().answer(request)
        self.asked.append(body)
        event = self.aborted.setdefault(engine_id(request.headers.get(REQUEST_ID, "")), asyncio.Event())
        await asyncio.wait_for(event.wait(), 30)
        return web.json_response({"choices": [self.part(i, size) for i, size in enumerate(HAS)]})

    async def abort(self, request: web.Request) -> web.StreamResponse:
        for name in (await request.json())["request_ids"]:
            self.aborted.setdefault(name, asyncio.Event()).set()
        return web.Response()

    def part(self, index: int, size: int) -> dict[str, Any]:
        ids = encode("1" * size)
        return {"index": index, "token_ids": ids, "finish_reason": "abort",
                "logprobs": {"content": [{"token_id": token, "logprob": -1.0} for token in ids]},
                "weight_versions": [{"version": self.version, "start": 0, "end": size}]}


def config_of(place: Path, policy: str) -> RunConfig:
    return run_config(place, reproducible=False, rollout=ROLLOUT | {"lowered_cap": policy})


def collected(config: RunConfig, engine: Writing, stamp: StepBudget = STAMP,
              admitted: tuple[StepBudget, ...] = (LOWER,), done: int = 2) -> dict[str, Any]:
    """Collect a step, and have later ones admitted once two of its groups are `done` and the others in flight."""

    async def work() -> dict[str, Any]:
        async with serving(engine) as urls:
            collector, client, progress = collector_of(config), client_of(urls), Progress()
            collecting = asyncio.ensure_future(collector.collect(stamp, "0", client, progress))
            try:
                while (progress.groups_done < done or not engine.asked) and not collecting.done():
                    await asyncio.sleep(0.01)
                for budget in admitted:
                    collector.admitted(budget)
                return await collecting
            finally:
                collecting.cancel()
                await client.close()

    return dict(run(work()))


def test_cut(tmp_path: Path) -> None:
    """Two groups are done under 12; of the others what passes 8 is truncated there, the rest goes on up to 8."""
    config, engine = config_of(tmp_path, "cut"), Writing()
    stats = collected(config, engine)
    rows = rows_of(config)
    caps = {group: {int(cap) for cap in rows.cap[rows.group == group]} for group in range(4)}
    assert sorted(map(tuple, caps.values())) == [(8,), (8,), (12,), (12,)]
    assert stats["lowered_groups"] == 2
    for row in (rows.rollout(at) for at in range(12) if rows.cap[at] == 8):
        assert row.response_ids[:5] == encode("1" * 5)
        assert len(row.response_ids) == len(row.logprobs) == row.spans[-1]["end"] <= 8
        assert row.truncated == (row.finish_reason == "length")
        assert row.sample == 2 or (row.truncated and row.response_ids == encode("1" * 8))
    [first, second] = [body for body in engine.asked if body["sampling_params"]["n"] == 1]
    for body in (first, second):  # slime#2260: what it has counts
        assert body["sampling_params"]["max_tokens"] == 3
        assert body["token_ids"][-5:] == encode("1" * 5)


def test_cut_twice(tmp_path: Path) -> None:
    """The cap falls again: the group has the lower of both, and nothing is asked of a response that has it already."""
    config, engine = config_of(tmp_path, "cut"), Writing()
    stats = collected(config, engine, admitted=(LOWER, replace(LOWER, step=2, cap=5)))
    assert stats["lowered_groups"] == 2
    assert sorted(set(rows_of(config).cap.tolist())) == [5, 12]
    assert not [body for body in engine.asked if body["sampling_params"]["n"] == 1]


def test_drop(tmp_path: Path) -> None:
    config, engine = config_of(tmp_path, "drop"), Writing()
    stats = collected(config, engine)
    rows = rows_of(config)
    assert stats["lowered_groups"] == 2
    assert [body["sampling_params"]["max_tokens"] for body in engine.asked] == [12, 12, 12, 12, 8, 8]
    assert [body["token_ids"] for body in engine.asked[4:]] == [body["token_ids"] for body in engine.asked[:2]]
    assert (rows.response_length <= rows.cap).all()
    assert len({(int(group), int(at)) for group, at in zip(rows.group, rows.sample, strict=True)}) == 12


@pytest.mark.parametrize(("policy", "changes"), [
    ("keep", {}), ("cut", {"cap": 12}), ("cut", {"step": 0}), ("drop", {"cap": 16})])
def test_only_falling(tmp_path: Path, policy: str, changes: dict[str, int]) -> None:
    """Groups in flight keep their cap by default, and where the later step's is not smaller."""
    config, engine = config_of(tmp_path, policy), Writing(slow=0, delay_s=0.3)
    assert collected(config, engine, admitted=(replace(LOWER, **changes),), done=0)["lowered_groups"] == 0
    assert len(engine.asked) == 4
    assert set(rows_of(config).cap.tolist()) == {12}


def test_a_closed_step_with_lowered_groups_is_used_again(tmp_path: Path) -> None:
    """By a resumed run of the same policy; without the policy a smaller cap is still refused (negative control)."""
    config = config_of(tmp_path, "cut")
    first = collected(config, Writing())
    again = collected(config, Writing(slow=0), admitted=())
    assert again["reused"] is True
    assert again["lowered_groups"] == first["lowered_groups"]
    with pytest.raises(DataError):
        collected(config_of(tmp_path, "keep"), Writing(slow=0), admitted=())


def test_what_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="lowered_cap=cut with lag=0"):
        run_config(tmp_path, rollout=ROLLOUT | {"lag": 0, "lowered_cap": "cut"})
