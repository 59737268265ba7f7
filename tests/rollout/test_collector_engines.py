"""The collector on real engines: stamped rows that obey the cap, with log-probs, the same again when reproducible."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from engine_fleet import EngineFleet
from fake_engine import client_of
from hf_reference import logprobs as hf_logprobs
from transformers import AutoModelForCausalLM

from siri_megatron.budget.step_budget import StepBudget
from siri_megatron.config import RunConfig, identity_hash
from siri_megatron.data.codec import TextCodec
from siri_megatron.data.digit_tokenizer import EOS_ID
from siri_megatron.data.prompts import suite_prompts, train_prompts
from siri_megatron.errors import EngineError
from siri_megatron.launch.driver import name_version
from siri_megatron.ledger.read import StepRows, open_step
from siri_megatron.ledger.schema import Rollout
from siri_megatron.reward.verifier import build_verifier
from siri_megatron.rollout.collector import Collector, Progress
from siri_megatron.rollout.evaluation import Evaluator
from siri_megatron.rollout.forced import ForcedAnswer
from siri_megatron.rollout.suites import suites_of

pytestmark = pytest.mark.engine

STAMP = StepBudget(step=3, cycle=0, phase="compression", cap=20, version=2)


@pytest.fixture(scope="module")
def config(engines: EngineFleet) -> RunConfig:
    """The fleet's config with small steps; its weights are called version 3."""
    for url in engines.urls:
        name_version(url, engines.key, "3")
    rollout = engines.config.rollout.model_copy(update={"prompts_per_step": 6, "samples_per_prompt": 4})
    evaluation = engines.config.evaluation.model_copy(update={"problems": 8, "samples": 2})
    return engines.config.model_copy(update={"rollout": rollout, "evaluation": evaluation})


def collect(fleet: EngineFleet, config: RunConfig, ledger: Path, *, version: str = "3", only: int | None = None,
            caps: dict[str, int] | None = None) -> dict[str, Any]:
    """Collect the step on the fleet, or on one engine of it."""
    codec = TextCodec.load(fleet.model_dir)
    collector = Collector(config, ledger, train_prompts(config.data, codec), codec.stop_ids,
                          build_verifier(config.reward, codec), ForcedAnswer.of(config.reward, codec))

    async def work() -> dict[str, Any]:
        client = client_of(fleet.urls if only is None else (fleet.urls[only],), version, key=fleet.key)
        try:
            return await collector.collect(STAMP, version, client, Progress(), caps)
        finally:
            await client.close()

    return asyncio.run(work())


def content(rows: StepRows) -> list[Rollout]:
    """Tokens, rewards and stamps; log-probs are compared apart, clocks and routing not at all."""
    return [replace(rows.rollout(i), seconds=0.0, engine=0, logprobs=[]) for i in range(len(rows))]


def logprobs(rows: StepRows) -> np.ndarray[Any, Any]:
    return np.concatenate([rows.rollout(i).logprobs for i in range(len(rows))])


def test_rows_obey_cap_and_stamp(engines: EngineFleet, config: RunConfig, tmp_path: Path) -> None:
    stats = collect(engines, config, tmp_path)
    rows = open_step(tmp_path, 3)
    assert (rows.budget, rows.identity, len(rows)) == (STAMP, identity_hash(config), 24)
    for i in range(24):
        row = rows.rollout(i)
        assert (row.step, row.phase, row.cap, row.cap_version) == (3, "compression", 20, 2)
        assert 1 <= len(row.response_ids) == len(row.logprobs) <= 20
        assert all(value <= 1e-5 for value in row.logprobs)
        assert row.truncated == (row.response_ids[-1] != EOS_ID)
        assert row.truncated == (row.finish_reason == "length")
        assert row.spans == [{"version": "3", "start": 0, "end": len(row.response_ids)}]
    assert {row.truncated for row in content(rows)} == {True, False}  # the random model does both: nothing is vacuous
    assert set(stats["engines"]) == {"0", "1"}
    again = collect(engines, config, tmp_path)
    assert (again["reused"], again["tokens"]) == (True, stats["tokens"])


def test_reproducible_on_any_number_of_engines(engines: EngineFleet, config: RunConfig, tmp_path: Path) -> None:
    collect(engines, config, tmp_path / "two")
    collect(engines, config, tmp_path / "one", only=1)
    two, one = open_step(tmp_path / "two", 3), open_step(tmp_path / "one", 3)
    assert content(two) == content(one)
    np.testing.assert_array_equal(logprobs(two), logprobs(one))
    other = config.model_copy(update={"seed": 99})  # negative control
    collect(engines, other, tmp_path / "other")
    assert content(open_step(tmp_path / "other", 3)) != content(one)


def test_a_prompt_may_have_a_cap_of_its_own(engines: EngineFleet, config: RunConfig, tmp_path: Path) -> None:
    """In one step, half of the prompts with 7 tokens: theirs are the first 7 of what they say with 20."""
    collect(engines, config, tmp_path / "whole")
    whole = open_step(tmp_path / "whole", 3)
    caps = {str(whole.prompt_id[4 * group]): 7 for group in (0, 2, 4)}
    stats = collect(engines, config, tmp_path / "own", caps=caps)
    own = open_step(tmp_path / "own", 3)
    assert own.cap.tolist() == [*[7] * 4, *[20] * 4] * 3
    assert (stats["mean_cap"], stats["lowered_caps"]) == (13.5, 0.5)
    assert own.budget == whole.budget == STAMP
    for row, full in zip(content(own), content(whole), strict=True):
        assert row.response_ids == full.response_ids[:row.cap]
        assert row.truncated == (row.response_ids[-1] != EOS_ID)
    assert stats["truncated"] > np.mean(whole.truncated)


def test_log_probs_after_a_forced_text_are_those_given_it(engines: EngineFleet, config: RunConfig,
                                                          tmp_path: Path) -> None:
    """Of every sampled token of every row, against transformers on the whole sequence; the forced ones have none."""
    forced = config.model_copy(update={"reward": config.reward.model_copy(update={
        "overlong": "forced", "forced_text": "~A", "forced_reserve": 8})})
    stats = collect(engines, forced, tmp_path / "two")
    collect(engines, forced, tmp_path / "one", only=1)
    rows, model = open_step(tmp_path / "two", 3), AutoModelForCausalLM.from_pretrained(engines.model_dir)
    assert 0.2 < stats["forced"] < 1
    for i in range(len(rows)):
        row = rows.rollout(i)
        assert len(row.response_ids) <= STAMP.cap
        own = hf_logprobs(model, row.prompt_ids, row.response_ids)
        sampled = [not row.forced_start <= place < row.forced_end for place in range(len(own))]
        np.testing.assert_allclose(np.array(row.logprobs)[sampled], own.numpy()[sampled], atol=1e-4)
        assert not row.forced_end or np.abs(own.numpy())[~np.array(sampled)].max() > 0.1  # negative control: 0 is none
    assert content(open_step(tmp_path / "one", 3)) == content(rows)


def test_other_weights_are_refused(engines: EngineFleet, config: RunConfig, tmp_path: Path) -> None:
    with pytest.raises(EngineError, match="version 3, expected 4"):
        collect(engines, config, tmp_path, version="4")


def test_prompt_and_cap_beyond_the_context_are_refused_once(engines: EngineFleet, config: RunConfig) -> None:
    from siri_megatron.rollout.request import Request

    async def work() -> None:
        client = client_of(engines.urls, "3", key=engines.key)
        try:
            request = Request(0, [1] * config.max_model_len, 1, 8, 1.0, None, (EOS_ID,))
            await client.generate(request, version="3")
        finally:
            await client.close()

    with pytest.raises(EngineError, match="answered 400"):
        asyncio.run(work())


@pytest.mark.parametrize("temperature", [1.0, 0.0])
def test_evaluation(engines: EngineFleet, config: RunConfig, temperature: float, tmp_path: Path) -> None:
    settings = config.evaluation.model_copy(update={"temperature": temperature})
    config = config.model_copy(update={"evaluation": settings})
    codec = TextCodec.load(engines.model_dir)
    suites = suites_of(config.evaluation, suite_prompts(config, codec))
    evaluator = Evaluator(config, suites, codec, build_verifier(config.reward, codec), tmp_path)

    async def work() -> dict[str, Any]:
        client = client_of(engines.urls, "3", key=engines.key)
        try:
            return await evaluator.evaluate("start", "3", client, Progress())
        finally:
            await client.close()

    report = asyncio.run(work())
    assert (report["problems"], report["samples"]) == (8, 2 if temperature else 1)
    assert set(report["budgets"]) == {"32", "48", "64", "128"}
    assert 0 < report["mean_tokens"] <= 128
    low, high = report["accuracy_ci"]
    assert 0 <= low <= report["accuracy"] <= high <= 1
