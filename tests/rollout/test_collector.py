"""Collecting steps and evaluating, against fake engines: stamps, caps, faults, reuse."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from fake_engine import FakeEngine, drop_connection, refuse, run_config, serving

from siri_megatron.budget.step_budget import StepBudget
from siri_megatron.config import RunConfig, identity_hash
from siri_megatron.data.codec import TextCodec
from siri_megatron.data.digit_tokenizer import EOS_ID
from siri_megatron.data.prompts import train_prompts
from siri_megatron.data.sampler import PromptSampler
from siri_megatron.errors import DataError, EngineError
from siri_megatron.ledger.read import StepRows, open_step
from siri_megatron.ledger.schema import Rollout
from siri_megatron.paths import RunDir
from siri_megatron.reward.verifier import build_verifier
from siri_megatron.rollout.collector import Collector, Progress
from siri_megatron.rollout.engine_client import EngineClient

STAMP = StepBudget(step=0, cycle=0, phase="compression", cap=12, version=1)


def run(work: Coroutine[Any, Any, Any]) -> Any:
    async def bounded() -> Any:
        async with asyncio.timeout(30):
            return await work

    return asyncio.run(bounded())


def collector_of(config: RunConfig) -> Collector:
    codec = TextCodec.load(config.model.path)
    return Collector(config, RunDir(config.run_dir).ledger, train_prompts(config.data, codec), codec.stop_ids,
                     build_verifier(config.reward, codec))


def collect(config: RunConfig, *engines: FakeEngine, stamp: StepBudget = STAMP, version: str = "0",
            dead: int = 0) -> dict[str, Any]:
    """Collect one step; `dead` further engines are in the fleet, but nobody listens there."""

    async def work() -> dict[str, Any]:
        async with serving(*engines) as urls:
            fleet = ("http://127.0.0.1:9",) * dead + urls
            client = EngineClient(fleet, "secret", connections=8)
            try:
                return await collector_of(config).collect(stamp, version, client, Progress())
            finally:
                await client.close()

    return run(work())


def rows_of(config: RunConfig, step: int = 0) -> StepRows:
    return open_step(RunDir(config.run_dir).ledger, step)


def content(rows: StepRows) -> list[Rollout]:
    """Rows without what a clock or the routing says."""
    return [replace(rows.rollout(i), seconds=0.0, engine=0) for i in range(len(rows))]


def test_rows_carry_the_stamp_and_obey_the_cap(tmp_path: Path) -> None:
    config, one, two = run_config(tmp_path), FakeEngine(), FakeEngine()
    stats = collect(config, one, two)
    rows = rows_of(config)
    prompts = train_prompts(config.data, TextCodec.load(config.model.path))
    taken = PromptSampler(10, config.seed).take(0, 4)
    assert (rows.budget, rows.identity, len(rows)) == (STAMP, identity_hash(config), 12)
    assert len(one.asked) == len(two.asked) == 2
    assert one.keys | two.keys == {"Bearer secret"}
    assert {body["sampling_params"]["max_tokens"] for body in one.asked + two.asked} == {12}
    for i in range(12):
        row, prompt = rows.rollout(i), prompts[taken[i // 3]]
        assert (row.group, row.sample) == divmod(i, 3)
        assert (row.prompt_id, tuple(row.prompt_ids), row.answer) == (prompt.id, prompt.token_ids, prompt.answer)
        assert len(row.logprobs) == len(row.response_ids) <= 12
        assert row.truncated == (EOS_ID not in row.response_ids)
        text = TextCodec.load(config.model.path).decode(row.response_ids)
        right = not row.truncated and text.endswith(f"A{row.answer}")
        assert (row.reward, row.outcome) == ((1.0, "right") if right else (0.0, "wrong"))
        assert row.budget_rewards == [float(right and len(row.response_ids) <= budget) for budget in (4, 8, 12)]
    assert stats["samples"] == 12
    assert stats["reused"] is False
    assert stats["budget_accuracy"]["12"] == stats["accuracy"]


def test_reproducible_whatever_the_fleet(tmp_path: Path) -> None:
    one, other = run_config(tmp_path / "a"), run_config(tmp_path / "b")
    collect(one, FakeEngine())
    collect(other, FakeEngine(), FakeEngine(delay_s=0.05))
    assert content(rows_of(one)) == content(rows_of(other))
    unseeded = run_config(tmp_path / "c", reproducible=False)  # negative control
    collect(unseeded, FakeEngine())
    assert content(rows_of(unseeded)) != content(rows_of(one))


def test_closed_step_is_reused(tmp_path: Path) -> None:
    config, engine = run_config(tmp_path), FakeEngine()
    first = collect(config, engine)
    second = collect(config, engine)
    assert len(engine.asked) == 4
    assert second["reused"] is True
    times = {"reused", "generation_s", "verification_s"}
    assert {k: v for k, v in first.items() if k not in times} == {k: v for k, v in second.items() if k not in times}


@pytest.mark.parametrize("change", ["stamp", "identity"])
def test_closed_step_of_another_stamp_or_identity_is_refused(tmp_path: Path, change: str) -> None:
    collect(run_config(tmp_path), FakeEngine())
    stamp = replace(STAMP, cap=11) if change == "stamp" else STAMP
    config = run_config(tmp_path, seed=2) if change == "identity" else run_config(tmp_path)
    with pytest.raises(DataError, match="closed under") as caught:
        collect(config, FakeEngine(), stamp=stamp)
    assert "12" in caught.value.what


def test_killed_step_is_gone_on_with(tmp_path: Path) -> None:
    """vime#324 loses what was finished at a resume, NeMo-RL#3594 the prompts that were in flight."""
    whole, config = run_config(tmp_path / "whole"), run_config(tmp_path / "killed")
    collect(whole, FakeEngine())
    with pytest.raises(EngineError):  # one engine's two groups are in the ledger when the other fails
        collect(config, FakeEngine(), FakeEngine(delay_s=0.5, fault=refuse(400)))
    engine = FakeEngine()
    collect(config, engine)
    assert len(engine.asked) == 2
    assert content(rows_of(config)) == content(rows_of(whole))


def test_refused_request_is_never_sent_again(tmp_path: Path) -> None:
    """slime #2260: a deterministic 400 was retried for ever."""
    engines = [FakeEngine(fault=refuse(400)), FakeEngine(fault=refuse(400))]
    with pytest.raises(EngineError, match="400: prompt"):
        collect(run_config(tmp_path), *engines)
    asked = [str(body["token_ids"]) for engine in engines for body in engine.asked]
    assert len(asked) == len(set(asked))


def test_broken_connection_goes_to_another_engine(tmp_path: Path) -> None:
    config = run_config(tmp_path)
    stats = collect(config, FakeEngine(), dead=1)
    assert stats["engines"] == {"1": 12}


def test_server_error_goes_to_another_engine(tmp_path: Path) -> None:
    broken, sound = FakeEngine(fault=drop_connection), FakeEngine()
    stats = collect(run_config(tmp_path), broken, sound)
    assert len(broken.asked) == 2
    assert stats["engines"] == {"1": 12}


def test_two_broken_engines_are_both_named(tmp_path: Path) -> None:
    with pytest.raises(EngineError, match=r"127\.0\.0\.1:9.*; then .*127\.0\.0\.1:9"):
        collect(run_config(tmp_path), dead=2)


def test_other_weights_are_refused(tmp_path: Path) -> None:
    with pytest.raises(EngineError, match="version 3, expected 4"):
        collect(run_config(tmp_path), FakeEngine(version="3"), version="4")


def test_deadline_says_what_it_waited_for(tmp_path: Path) -> None:
    config = run_config(tmp_path)
    config = config.model_copy(update={"rollout": config.rollout.model_copy(update={"timeout_s": 0.5})})
    with pytest.raises(EngineError, match=r"step 0: 2 of 4 groups after 0\.5 s"):
        collect(config, FakeEngine(), FakeEngine(delay_s=60))


def test_proxies_are_ignored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    assert collect(run_config(tmp_path), FakeEngine())["samples"] == 12
