"""A push while engines generate: requests stay, and every token has the weights that its span names."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import pytest
import torch
from engine_fleet import EngineFleet, alone, wait_until
from hf_reference import logprobs, randomised
from test_push import PROMPTS, TOLERANCE, ModelSource
from transformers import PreTrainedModel

from siri_megatron.config import RunConfig
from siri_megatron.rollout.engine_api import Sample
from siri_megatron.weights.push import WeightPush

pytestmark = pytest.mark.engine

LONG = 160
"""Tokens of an answer: a push takes a small part of the time that so many do."""


def with_lag(engines: EngineFleet, backend: str) -> RunConfig:
    config = engines.with_push(backend)
    return config.model_copy(update={"rollout": config.rollout.model_copy(update={"lag": 1})})


def running(engines: EngineFleet, engine: int) -> int:
    """Requests that an engine works on."""
    lines = engines.get(engine, "/metrics").text.splitlines()
    return int(sum(float(line.split()[-1]) for line in lines if line.startswith("vllm:num_requests_running")))


def sampled_across(engines: EngineFleet, push: WeightPush, version: str) -> list[list[Sample]]:
    """Answers during which `version` was pushed: two samples of each prompt, of both engines in turn."""
    with ThreadPoolExecutor(len(PROMPTS)) as pool:
        asked: list[Future[list[Sample]]] = [
            pool.submit(engines.sample, at % 2, prompt, n=2, max_tokens=LONG, seed=None)
            for at, prompt in enumerate(PROMPTS)]
        wait_until(lambda: running(engines, 0) >= 2 and running(engines, 1) >= 2, 60, "both engines to generate", 0.02)
        push.push(version)
        return [answer.result() for answer in asked]


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
    push.push("41")
    push.learner = ModelSource(new)
    answers = sampled_across(engines, push, "42")
    versions = [[span["version"] for span in sample.spans] for samples in answers for sample in samples]
    assert ["41", "42"] in versions
    assert {tuple(one) for one in versions} <= {("41",), ("42",), ("41", "42")}
    assert all(len(sample.token_ids) == LONG for samples in answers for sample in samples)
    assert worst(old, answers, "41") < TOLERANCE
    assert worst(new, answers, "42") < TOLERANCE
    assert worst(new, answers, "41") > 1e-2  # negative control: the weights differ, and it would show
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
    push.push("43")

    push.learner = FailsOnce(new)
    answers = sampled_across(engines, push, "44")
    assert any([span["version"] for span in sample.spans] == ["43", "44"] for samples in answers for sample in samples)
    assert worst(old, answers, "43") < TOLERANCE
    assert worst(new, answers, "44") < TOLERANCE
    push.close()
