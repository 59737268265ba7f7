"""A push while engines generate: requests stay, and every token has the weights that its span names."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from copy import deepcopy

import pytest
import torch
from engine_fleet import EngineFleet, alone, wait_until
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
"""Tokens and samples of a request."""
CROWD = 10
"""Requests of each prompt: seconds of work, so that a push comes amid some of them."""
TRIES = 16
"""Of a moment in the midst of a request: an engine, or this process, may be held up just then."""
WORST = 2e-5
"""Of thousands of tokens, at up to 170 places. Hugging Face's own float32 is off by up to 1.05e-5 from its float64 over
as many, at once or one by one."""


def with_lag(engines: EngineFleet, backend: str) -> RunConfig:
    config = engines.with_push(backend)
    return config.model_copy(update={"rollout": config.rollout.model_copy(update={"lag": 1})})


def sampled_across(engines: EngineFleet, push: WeightPush, old: ModelSource,
                   new: Callable[[], ModelSource]) -> list[list[Sample]]:
    """An answer to each prompt, by both engines in turn; of each engine at least one during which the weights went from
    version 1 to 2."""
    for _ in range(TRIES):
        push.learner = old
        push.push("1")
        push.learner = new()
        with ThreadPoolExecutor(CROWD * len(PROMPTS)) as pool:
            asked = [pool.submit(engines.sample, at % 2, prompt, n=SAMPLES, max_tokens=LONG, seed=None)
                     for _ in range(CROWD) for at, prompt in enumerate(PROMPTS)]
            wait_until(lambda asked=asked: all(runs_or_has_answered(engines, engine, asked) for engine in (0, 1)), 60,
                       "both engines to generate", every_s=0.01)
            push.push("2")
            every = [answer.result() for answer in asked]
        answers = [max(every[at::len(PROMPTS)], key=mixed) for at in range(len(PROMPTS))]
        if all(any(map(mixed, answers[engine::2])) for engine in (0, 1)):
            return answers
    raise AssertionError("no push fell into the midst of a request")


def runs_or_has_answered(engines: EngineFleet, engine: int, asked: list[Future[list[Sample]]]) -> bool:
    return engines.metric(engine, "num_requests_running") > 0 or any(answer.done() for answer in asked[engine::2])


def mixed(samples: list[Sample]) -> bool:
    return any([span["version"] for span in sample.spans] == ["1", "2"] for sample in samples)


def errors(model: PreTrainedModel, answers: list[list[Sample]], version: str) -> tuple[torch.Tensor, torch.Tensor]:
    """|engine - Hugging Face in float64| of the tokens that are said to be of `version`, and |Hugging Face in float32 -
    in float64| of the same ones."""
    exact = deepcopy(model).double()
    theirs, own = [torch.zeros(0)], [torch.zeros(0)]
    for prompt, samples in zip(PROMPTS, answers, strict=False):
        for sample in samples:
            parts = [slice(span["start"], span["end"]) for span in sample.spans if span["version"] == version]
            if parts:
                reference = logprobs(exact, prompt, sample.token_ids)
                rounded = logprobs(model, prompt, sample.token_ids)
                theirs += [(torch.tensor(sample.logprobs) - reference)[part].abs() for part in parts]
                own += [(rounded - reference)[part].abs() for part in parts]
    return torch.cat(theirs), torch.cat(own)


def assert_exact(model: PreTrainedModel, answers: list[list[Sample]], version: str) -> None:
    """As near to float64 as another float32 is: the mean says so most sharply."""
    theirs, own = errors(model, answers, version)
    assert theirs.mean() < 2 * own.mean()
    assert theirs.max() < WORST


@pytest.mark.parametrize("backend", ["shm", "gloo"])
def test_requests_in_flight_go_on_under_the_new_weights(engines: EngineFleet, backend: str) -> None:
    """Keys and values of old weights are dropped (NeMo-RL PR#4018); old tokens keep the log-probs they were given."""
    old, new = randomised(engines.model_dir, seed=41), randomised(engines.model_dir, seed=42)
    push = WeightPush(with_lag(engines, backend), engines.run_dir, ModelSource(old), alone)
    answers = sampled_across(engines, push, ModelSource(old), lambda: ModelSource(new))
    assert all(len(sample.token_ids) == LONG for samples in answers for sample in samples)
    assert {span["version"] for samples in answers for sample in samples for span in sample.spans} == {"1", "2"}
    assert_exact(old, answers, "1")
    assert_exact(new, answers, "2")
    assert errors(new, answers, "1")[0].max() > 1e-2  # negative control: the weights differ, and it would show
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
    assert_exact(old, answers, "1")
    assert_exact(new, answers, "2")
    push.close()


def test_an_aborted_request_says_what_it_has(engines: EngineFleet) -> None:
    """What `rollout.lowered_cap: cut` relies on: all samples of the request come back, with log-probs and spans."""
    model = randomised(engines.model_dir, seed=45)
    WeightPush(with_lag(engines, "shm"), engines.run_dir, ModelSource(model), alone).push("45")
    for attempt in range(TRIES):
        answers = asyncio.run(aborted_after(engines, 0.05 * 1.3 ** attempt))
        if any(0 < len(sample.token_ids) < LONG for sample in answers):
            break
    assert any(0 < len(sample.token_ids) < LONG for sample in answers)
    assert all(len(sample.token_ids) == LONG or sample.finish_reason == ABORTED for sample in answers)
    assert errors(model, [answers], "45")[0].max() < WORST


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
