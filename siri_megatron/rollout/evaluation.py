"""Held-out evaluation: one generation at the largest budget, scored at every budget."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from siri_megatron.config import RunConfig
from siri_megatron.data.codec import TextCodec
from siri_megatron.data.prompts import Prompt
from siri_megatron.reward.verifier import Scored, Verifier
from siri_megatron.rollout.collector import Progress, score_all, within
from siri_megatron.rollout.engine_api import Sample
from siri_megatron.rollout.engine_client import EngineClient, Request, gather_or_cancel
from siri_megatron.rollout.evaluation_stats import EvalSample, evaluation_report
from siri_megatron.rollout.sampling import request_seed

EXAMPLES = 8

Judged = tuple[Prompt, Sample, Scored]


class Evaluator:
    """Evaluates one weight version on the run's held-out problems.

    Args:
        prompts: the held-out problems.
    """

    def __init__(self, config: RunConfig, prompts: Sequence[Prompt], codec: TextCodec, verifier: Verifier) -> None:
        self._config, self._prompts, self._codec, self._verifier = config, prompts, codec, verifier

    async def evaluate(self, tag: str, version: str, engines: EngineClient, progress: Progress) -> dict[str, Any]:
        """Sample every problem under `version`; returns what goes into evaluations/<tag>.json.

        Raises:
            EngineError: an engine failed, or `rollout.timeout_s` went by.
        """
        started = time.perf_counter()
        progress.groups = len(self._prompts)
        async with within(self._config.rollout.timeout_s, f"evaluation {tag}", progress, engines):
            judged = await gather_or_cancel([self._problem(place, version, engines, progress)
                                             for place in range(len(self._prompts))])
        samples = [eval_sample(place, *one) for place, group in enumerate(judged) for one in group]
        return {
            "tag": tag, "weight_version": version, **evaluation_report(samples, self._config.evaluation.budgets),
            "problems": len(self._prompts), "samples": self._n, "temperature": self._config.evaluation.temperature,
            "seconds": time.perf_counter() - started, "examples": self._examples(judged),
        }

    @property
    def _n(self) -> int:
        """Samples a problem: greedy decoding gives the same answer every time, so one it is (vLLM refuses more)."""
        return self._config.evaluation.samples if self._config.evaluation.temperature > 0 else 1

    async def _problem(self, place: int, version: str, engines: EngineClient, progress: Progress) -> list[Judged]:
        prompt, settings = self._prompts[place], self._config.evaluation
        largest = max(settings.budgets)
        seed = (request_seed(self._config.seed, "evaluation", place, prompt.id)
                if self._config.reproducible and settings.temperature > 0 else None)
        request = Request(place, prompt.token_ids, self._n, largest, settings.temperature, seed, self._codec.stop_ids)
        answer = await engines.generate(request, version=version)
        progress.answered(answer.samples)
        scored = await score_all(self._verifier, prompt, answer.samples, largest, settings.budgets,
                                 self._codec.stop_ids)
        progress.groups_done += 1
        return [(prompt, sample, result) for sample, result in zip(answer.samples, scored, strict=True)]

    def _examples(self, judged: Sequence[Sequence[Judged]]) -> list[dict[str, Any]]:
        """A few whole answers for people, spread over the problems."""
        picked = judged[::max(1, len(judged) // EXAMPLES)][:EXAMPLES]
        return [{"prompt": prompt.text, "response": self._codec.decode(sample.token_ids), "answer": prompt.answer,
                 "outcome": scored.outcome, "tokens": len(sample.token_ids), "tier": prompt.tier}
                for prompt, sample, scored in (group[0] for group in picked)]


def eval_sample(place: int, prompt: Prompt, sample: Sample, scored: Scored) -> EvalSample:
    return EvalSample(place, prompt.tier, len(sample.token_ids), scored.truncated, scored.budgets)
