"""Collecting steps and evaluating, against fake engines: stamps, caps, faults, reuse."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from fake_engine import FakeEngine, client_of, drop_connection, refuse, run_config, serving

from siri_megatron.budget.step_budget import StepBudget
from siri_megatron.config import RunConfig, identity_hash
from siri_megatron.data.codec import TextCodec
from siri_megatron.data.digit_tokenizer import EOS_ID, encode
from siri_megatron.data.prompts import train_prompts
from siri_megatron.data.sampler import PromptSampler
from siri_megatron.errors import DataError, EngineError
from siri_megatron.ledger.read import StepRows, open_step
from siri_megatron.ledger.schema import Rollout
from siri_megatron.paths import RunDir
from siri_megatron.reward.verifier import build_verifier
from siri_megatron.rollout.collector import Collector, Progress
from siri_megatron.rollout.forced import ForcedAnswer

STAMP = StepBudget(step=0, cycle=0, phase="compression", cap=12, version=1)


def run(work: Coroutine[Any, Any, Any]) -> Any:
    async def bounded() -> Any:
        async with asyncio.timeout(30):
            return await work

    return asyncio.run(bounded())


def collector_of(config: RunConfig) -> Collector:
    codec = TextCodec.load(config.model.path)
    return Collector(config, RunDir(config.run_dir).ledger, train_prompts(config.data, codec), codec.stop_ids,
                     build_verifier(config.reward, codec), ForcedAnswer.of(config.reward, codec))


def collect(config: RunConfig, *engines: FakeEngine, stamp: StepBudget = STAMP, version: str = "0",
            dead: int = 0, caps: dict[str, int] | None = None) -> dict[str, Any]:
    """Collect one step; `dead` further engines are in the fleet, but nobody listens there."""

    async def work() -> dict[str, Any]:
        async with serving(*engines) as urls:
            fleet = ("http://127.0.0.1:9",) * dead + urls
            client = client_of(fleet, version)
            try:
                return await collector_of(config).collect(stamp, version, client, Progress(), caps)
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


def lowered(config: RunConfig, cap: int) -> dict[str, int]:
    """A cap for the first two prompts of step 0, and for one that the step does not take."""
    prompts = train_prompts(config.data, TextCodec.load(config.model.path))
    order = PromptSampler(10, config.seed).take(0, 5)
    return {prompts[order[place]].id: cap for place in (0, 1, 4)}


def test_a_prompt_may_have_a_cap_of_its_own(tmp_path: Path) -> None:
    """The cap is data: its request, stamp, truncation flag, reward and J(B) are those of a step with that cap."""
    config, engine = run_config(tmp_path), FakeEngine()
    caps = lowered(config, 5)
    stats = collect(config, engine, caps=caps)
    rows = rows_of(config)
    assert [body["sampling_params"]["max_tokens"] for body in engine.asked] == [5, 5, 12, 12]
    assert rows.cap.tolist() == [5] * 6 + [12] * 6
    assert {row.cap_version for row in content(rows)} == {STAMP.version}
    assert (stats["mean_cap"], stats["lowered_caps"]) == (8.5, 0.5)
    for row in content(rows):
        assert len(row.response_ids) <= row.cap
        assert row.truncated == (EOS_ID not in row.response_ids)
        assert row.budget_rewards[1:] == [row.reward] * 2 or row.cap == 12  # from 8 on, above the cap of 5, as at it

    short = run_config(tmp_path / "short")  # the same prompts and seeds in a step whose cap is 5
    collect(short, FakeEngine(), stamp=replace(STAMP, cap=5))
    assert content(rows_of(short))[:6] == content(rows)[:6]
    whole = run_config(tmp_path / "whole")
    collect(whole, FakeEngine())
    assert content(rows_of(whole))[6:] == content(rows)[6:]
    assert content(rows_of(whole))[:6] != content(rows)[:6]  # negative control


def test_a_closed_step_with_other_caps_is_refused(tmp_path: Path) -> None:
    config = run_config(tmp_path)
    caps = lowered(config, 5)
    collect(config, FakeEngine(), caps=caps)
    assert collect(config, FakeEngine(), caps=caps)["reused"] is True
    for other in ({}, lowered(config, 6)):
        with pytest.raises(DataError, match=r"was admitted with cap 5, asked for is (6|12)"):
            collect(config, FakeEngine(), caps=other)


class Solver(FakeEngine):
    """Answers every prompt rightly; sample i in as many tokens as it is told, plus 3 for the answer and the end."""

    def __init__(self, config: RunConfig, lengths: list[int]) -> None:
        super().__init__()
        prompts = train_prompts(config.data, TextCodec.load(config.model.path))
        self.answers = {prompt.token_ids: prompt.answer for prompt in prompts}
        self.lengths = lengths

    def _choices(self, body: dict[str, Any]) -> list[dict[str, Any]]:
        answer = self.answers[tuple(body["token_ids"])]
        return [self._solved(i, answer) for i in range(body["sampling_params"]["n"])]

    def _solved(self, index: int, answer: str) -> dict[str, Any]:
        ids = [*encode("1" * self.lengths[index]), *encode(f"A{answer}"), EOS_ID]
        content = [{"token_id": token, "logprob": -0.5 - at / 1000} for at, token in enumerate(ids)]
        return {"index": index, "token_ids": ids, "logprobs": {"content": content}, "finish_reason": "stop",
                "weight_versions": [{"version": self.version, "start": 0, "end": len(ids)}]}


def dot_config(place: Path, rule: str = "dot") -> RunConfig:
    return run_config(place, reward={"length_rule": rule}, budget={"l_min": 8, "l_max": 400, "cycle_steps": 2,
                                                                   "cycles": 1},
                      rollout={"prompts_per_step": 4, "samples_per_prompt": 12, "budget_grid": [50, 100, 400],
                               "timeout_s": 20.0})


def test_dot_cuts_the_outlier_of_a_solved_group(tmp_path: Path) -> None:
    """Lengths 40 (11 times) and 380: T = floor(68.3 + 3 x 98.15) = 362; 380 - 362 is below the margin, 362 + 32 not."""
    stamp, near = replace(STAMP, cap=400), dot_config(tmp_path / "near")
    collect(near, Solver(near, [37] * 11 + [377]), stamp=stamp)
    assert {row.finish_reason for row in content(rows_of(near))} == {"stop"}

    far = run_config(tmp_path / "far", **{**dot_config(tmp_path / "x").model_dump(include={"budget", "rollout"}),
                                          "reward": {"length_rule": "dot", "dot": {"std_multiplier": 2}}})
    stats = collect(far, Solver(far, [37] * 11 + [377]), stamp=stamp)
    rows = content(rows_of(far))  # T = floor(68.3 + 2 x 98.15) = 264
    assert [len(row.response_ids) for row in rows] == [*[40] * 11, 264] * 4
    assert [row.finish_reason for row in rows] == [*["stop"] * 11, "cut"] * 4
    assert [row.reward for row in rows] == [*[1.0] * 11, 0.0] * 4  # the answer stood at the end
    assert all(row.budget_rewards == [row.reward] * 3 for row in rows)
    assert not any(row.truncated for row in rows)
    assert rows[11].spans == [{"version": "0", "start": 0, "end": 264}]
    assert rows[11].logprobs == pytest.approx([-0.5 - at / 1000 for at in range(264)])
    assert stats["dot_cut"] == pytest.approx(1 / 12)
    assert collect(far, FakeEngine(), stamp=stamp)["dot_cut"] == stats["dot_cut"]  # from the ledger

    none = dot_config(tmp_path / "none", rule="none")  # negative control
    assert collect(none, Solver(none, [37] * 11 + [377]), stamp=stamp)["dot_cut"] == 0
    assert {row.reward for row in content(rows_of(none))} == {1.0}


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
        collect(config, FakeEngine(), FakeEngine(delay_s=60), stamp=replace(STAMP, cap=16))


def test_proxies_are_ignored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    assert collect(run_config(tmp_path), FakeEngine())["samples"] == 12
