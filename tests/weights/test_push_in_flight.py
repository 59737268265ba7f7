"""A push while engines generate: requests stay, and every token has the weights that its span names."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from engine_fleet import EngineFleet, alone
from hf_reference import logprobs, randomised
from test_push import PROMPTS, ModelSource
from transformers import PreTrainedModel

from siri_megatron.config import RunConfig
from siri_megatron.rollout.engine_api import ABORTED, Sample
from siri_megatron.rollout.engine_client import EngineClient
from siri_megatron.rollout.fleet import Engine, Fleet, Pushed
from siri_megatron.rollout.request import Request
from siri_megatron.weights.push import WeightPush

pytestmark = pytest.mark.engine

LONG, SAMPLES = 160, 12
"""Tokens and samples of a request: they take longer than a push."""
TOLERANCE = 3e-5
"""Wider than of whole answers: what is prefilled anew is computed in batches of other shapes than it was sampled in."""


def with_lag(engines: EngineFleet, backend: str) -> RunConfig:
    config = engines.with_push(backend)
    return config.model_copy(update={"rollout": config.rollout.model_copy(update={"lag": 1})})


def sampled_across(engines: EngineFleet, push: WeightPush, old: ModelSource,
                   new: Callable[[], ModelSource]) -> list[list[Sample]]:
    """Answers of both engines during which the weights went from version 1 to 2."""
    for attempt in range(1, 8):
        push.learner = old
        push.push("1")
        push.learner = new()
        with ThreadPoolExecutor(len(PROMPTS)) as pool:
            asked = [pool.submit(engines.sample, at % 2, prompt, n=SAMPLES, max_tokens=LONG, seed=None)
                     for at, prompt in enumerate(PROMPTS)]
            time.sleep(0.1 * attempt)  # for them to arrive: how long that takes depends on what else the machine does
            push.push("2")
            answers = [answer.result() for answer in asked]
        if all(mixed(answers[engine::2]) for engine in (0, 1)):
            return answers
    raise AssertionError("no push fell into the midst of a request")


def mixed(answers: list[list[Sample]]) -> bool:
    return any([span["version"] for span in sample.spans] == ["1", "2"] for samples in answers for sample in samples)


def worst(model: PreTrainedModel, answers: list[list[Sample]], version: str) -> float:
    """Largest |engine - Hugging Face| log-prob over the tokens that are said to be of `version`."""
    found = [0.0]
    for prompt, samples in zip(PROMPTS, answers, strict=True):
        for sample in samples:
            reference = logprobs(model, prompt, sample.token_ids, 1.0)
            for span in (span for span in sample.spans if span["version"] == version):
                part = slice(span["start"], span["end"])
                found.append((torch.tensor(sample.logprobs[part]) - reference[part]).abs().max().item())
    return max(found)


@pytest.mark.parametrize("backend", ["shm", "gloo"])
def test_requests_in_flight_go_on_under_the_new_weights(engines: EngineFleet, backend: str) -> None:
    """Keys and values of old weights are dropped (NeMo-RL PR#4018); old tokens keep the log-probs they were given."""
    old, new = randomised(engines.model_dir, seed=41), randomised(engines.model_dir, seed=42)
    push = WeightPush(with_lag(engines, backend), engines.run_dir, ModelSource(old), alone)
    answers = sampled_across(engines, push, ModelSource(old), lambda: ModelSource(new))
    assert all(len(sample.token_ids) == LONG for samples in answers for sample in samples)
    assert {span["version"] for samples in answers for sample in samples for span in sample.spans} == {"1", "2"}
    assert worst(old, answers, "1") < TOLERANCE
    assert worst(new, answers, "2") < TOLERANCE
    assert worst(new, answers, "1") > 1e-2  # negative control: the weights differ, and it would show
    assert [engines.get(engine, "/is_paused").json()["is_paused"] for engine in (0, 1)] == [False, False]
    push.close()


class FailsOnce(ModelSource):
    """Its first export lacks a tensor, which the engines refuse."""

    def export_tensors(self) -> Iterator[tuple[str, torch.Tensor]]:
        self.leave_out = "" if self.leave_out else "model.norm.weight"
        return super().export_tensors()


def test_a_push_that_fails_and_is_repeated_loses_no_request(engines: EngineFleet) -> None:
    """Engines stay paused until a push is complete; the next one resumes them."""
    old, new = randomised(engines.model_dir, seed=43), randomised(engines.model_dir, seed=44)
    config = with_lag(engines, "shm")
    push = WeightPush(config.model_copy(update={"push": config.push.model_copy(update={"max_tries": 2})}),
                      engines.run_dir, ModelSource(old), alone)
    answers = sampled_across(engines, push, ModelSource(old), lambda: FailsOnce(new))
    assert worst(old, answers, "1") < TOLERANCE
    assert worst(new, answers, "2") < TOLERANCE
    push.close()


def test_an_aborted_request_says_what_it_has(engines: EngineFleet) -> None:
    """What `rollout.lowered_cap: cut` relies on: all samples of the request come back, with log-probs and spans."""
    model = randomised(engines.model_dir, seed=45)
    WeightPush(with_lag(engines, "shm"), engines.run_dir, ModelSource(model), alone).push("45")
    for attempt in range(1, 8):
        answers = asyncio.run(aborted_after(engines, 0.05 * attempt))
        if any(0 < len(sample.token_ids) < LONG for sample in answers):
            break
    assert any(0 < len(sample.token_ids) < LONG for sample in answers)
    for sample in answers:
        reference = logprobs(model, PROMPTS[0], sample.token_ids, 1.0) if sample.token_ids else torch.zeros(0)
        assert len(sample.token_ids) == LONG or sample.finish_reason == ABORTED
        assert sample.logprobs == pytest.approx(reference.tolist(), abs=TOLERANCE)


async def aborted_after(engines: EngineFleet, seconds: float) -> list[Sample]:
    client = EngineClient(engines.key, connections=4)
    client.follow(Fleet(1, (Engine(0, engines.urls[0]),)), Pushed("45", frozenset({(0, 0)})))
    interrupt = asyncio.Event()
    asyncio.get_running_loop().call_later(seconds, interrupt.set)
    try:
        async with asyncio.timeout(60):
            answer = await client.generate(Request(0, PROMPTS[0], SAMPLES, LONG, 1.0, None, ()), version="45",
                                           interrupts=[interrupt])
        return answer.samples
    finally:
        await client.close()
