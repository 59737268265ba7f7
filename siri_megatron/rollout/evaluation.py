"""Evaluation of one weight version: each suite generated once at its largest budget, scored at every budget."""

from __future__ import annotations

import hashlib
import json
import logging
import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from siri_megatron.config import RunConfig
from siri_megatron.config.evaluation import OWN
from siri_megatron.data.codec import TextCodec
from siri_megatron.data.prompts import Prompt
from siri_megatron.reward.verifier import Scored, Verifier
from siri_megatron.rollout.collector import Progress, score_all, within
from siri_megatron.rollout.engine_api import Sample
from siri_megatron.rollout.engine_client import EngineClient, gather_or_cancel
from siri_megatron.rollout.eval_journal import ENDING, Journal
from siri_megatron.rollout.evaluation_stats import EvalSample, by_question, evaluation_report
from siri_megatron.rollout.request import Request
from siri_megatron.rollout.sampling import request_seed
from siri_megatron.rollout.suites import Suite

log = logging.getLogger(__name__)

EXAMPLES = 8


class Evaluator:
    """Evaluates one weight version at a time on the suites of a run.

    Args:
        suites: at least one; the first one's numbers head the report.
        directory: where an evaluation that is under way keeps its finished questions.
    """

    def __init__(self, config: RunConfig, suites: Sequence[Suite], codec: TextCodec, verifier: Verifier,
                 directory: Path) -> None:
        self._config, self._suites, self._codec, self._verifier = config, suites, codec, verifier
        self._directory = directory

    async def evaluate(self, tag: str, version: str, engines: EngineClient, progress: Progress) -> dict[str, Any]:
        """Sample every question under `version`; returns what goes into evaluations/<tag>.json.

        Questions that an earlier, killed attempt has finished under the same weights and settings are not asked again.

        Raises:
            EngineError: an engine failed or sampled under other weights, or `evaluation.timeout_s` went by.
        """
        started = time.perf_counter()
        journal = Journal(self._journal(tag), self._key(tag, version), version)
        try:
            await self._ask(journal, f"evaluation {tag}", version, engines, progress)
        finally:
            journal.close()
        first, *others = [self._report(suite, journal) for suite in self._suites]
        return {"tag": tag, "weight_version": version, "seconds": time.perf_counter() - started, **first,
                "suites": {report["suite"]: report for report in others}}

    def forget(self, tag: str) -> None:
        """Remove the journal: the report is written."""
        self._journal(tag).unlink(missing_ok=True)

    async def _ask(self, journal: Journal, what: str, version: str, engines: EngineClient, progress: Progress) -> None:
        questions = [(suite, place) for suite in self._suites for place in range(len(suite.prompts))]
        missing = [(group, suite, place) for group, (suite, place) in enumerate(questions)
                   if (suite.name, place) not in journal.done]
        progress.groups, progress.groups_done = len(questions), len(questions) - len(missing)
        if progress.groups_done:
            log.info("%s goes on: %d of %d questions are done", what, progress.groups_done, progress.groups)
        async with within(self._config.evaluation_timeout_s, "evaluation.timeout_s", what, progress, engines):
            await gather_or_cancel([self._question(journal, what, group, suite, place, version, engines, progress)
                                    for group, suite, place in missing])

    async def _question(self, journal: Journal, what: str, group: int, suite: Suite, place: int, version: str,
                        engines: EngineClient, progress: Progress) -> None:
        prompt, largest = suite.prompts[place], max(suite.budgets)
        request = Request(group, prompt.token_ids, suite.samples, largest, suite.temperature,
                          self._seed(suite, place, prompt), self._codec.stop_ids, suite.top_p, job=what)
        answer = await engines.generate(request, version=version)
        progress.answered(answer.samples)
        scored = await score_all(self._verifier, prompt, answer.samples, largest, suite.budgets, self._codec.stop_ids)
        answers = [answer_record(*pair) for pair in zip(answer.samples, scored, strict=True)]
        if place in example_places(len(suite.prompts)):
            answers[0]["response"] = self._codec.decode(answer.samples[0].token_ids)
        journal.append((suite.name, place), answers)
        progress.groups_done += 1

    def _seed(self, suite: Suite, place: int, prompt: Prompt) -> int | None:
        if not self._config.reproducible or suite.temperature == 0:
            return None
        purpose = "evaluation" if suite.name == OWN else f"evaluation-{suite.name}"
        return request_seed(self._config.seed, purpose, place, prompt.id)

    def _report(self, suite: Suite, journal: Journal) -> dict[str, Any]:
        judged = [(place, prompt, journal.done[suite.name, place]) for place, prompt in enumerate(suite.prompts)]
        samples = [eval_sample(place, prompt, answer) for place, prompt, answers in judged for answer in answers]
        return {"suite": suite.name, **evaluation_report(samples, suite.budgets), "samples": suite.samples,
                "questions": {"fingerprint": suite.fingerprint, **by_question(samples, max(suite.budgets))},
                "temperature": suite.temperature, "top_p": suite.top_p, "left_out": suite.left_out,
                "examples": [example(prompt, answers[0]) for _, prompt, answers in judged if "response" in answers[0]]}

    def _journal(self, tag: str) -> Path:
        return self._directory / f"{tag}{ENDING}"

    def _key(self, tag: str, version: str) -> str:
        """Hash of everything that decides the answers and their verdicts."""
        config = self._config
        parts = [tag, version, config.model.fingerprint, config.seed, config.reproducible,
                 config.reward.model_dump(mode="json"), self._codec.stop_ids]
        parts += [[suite.name, suite.fingerprint, len(suite.prompts), suite.samples, suite.budgets, suite.temperature,
                   suite.top_p] for suite in self._suites]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]


def answer_record(sample: Sample, scored: Scored) -> dict[str, Any]:
    """A judged answer as the journal keeps it: reward 1, 0, or null for no verdict."""
    rewards = {str(budget): None if math.isnan(reward) else reward for budget, reward in scored.budgets.items()}
    return {"tokens": len(sample.token_ids), "truncated": scored.truncated, "outcome": scored.outcome,
            "rewards": rewards}


def eval_sample(place: int, prompt: Prompt, answer: dict[str, Any]) -> EvalSample:
    rewards = {int(budget): math.nan if reward is None else reward for budget, reward in answer["rewards"].items()}
    return EvalSample(place, prompt.tier, answer["tokens"], answer["truncated"], rewards)


def example_places(questions: int) -> range:
    """The questions whose first answer is kept whole, for people: a few, spread over the suite."""
    step = max(1, questions // EXAMPLES)
    return range(0, min(questions, step * EXAMPLES), step)


def example(prompt: Prompt, answer: dict[str, Any]) -> dict[str, Any]:
    return {"prompt": prompt.text, "response": answer["response"], "answer": prompt.answer,
            "outcome": answer["outcome"], "tokens": answer["tokens"], "tier": prompt.tier}
