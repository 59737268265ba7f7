"""The log-prob probe at work: the engines answer, every learner rank scores what they answered (`rollout.probe`).

Cost: on every engine 4 requests of 16 + 16 tokens, one after the other, and one forward pass of the learner over 128
tokens an engine.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from siri_megatron.config import RunConfig
from siri_megatron.learner.architecture import Architecture
from siri_megatron.rollout import probe
from siri_megatron.weights.fleet_client import Deadline
from siri_megatron.weights.push import Share, WeightPush


class Scorer(Protocol):
    """What a probe needs of a learner."""

    architecture: Architecture

    def logprobs(self, sequences: Sequence[tuple[Sequence[int], Sequence[int]]]) -> list[list[float]]:
        """Of each response's tokens, at the run's temperature. Collective."""


class LogprobProbe:
    """Built on every rank; `run` is collective over the learners."""

    def __init__(self, push: WeightPush, learner: Scorer, config: RunConfig, share: Share) -> None:
        self.push, self.learner, self.config, self._share = push, learner, config, share

    def run(self, version: str) -> probe.ProbeReport:
        """Compare the engines that were pushed to with the learner; the report is the same on every rank.

        Raises:
            EngineError: an engine does not answer in time, wrongly, or under another version.
        """
        answers: dict[str, list[Any]] = self._share(f"probe-{version}", lambda: self._answers(version))
        asked = probe.prompts(self.learner.architecture.vocab)
        scores = self.learner.logprobs([(prompt, ids) for engine in answers.values()
                                        for prompt, (ids, _) in zip(asked, engine, strict=True)])
        ours = [scores[at:at + len(asked)] for at in range(0, len(scores), len(asked))]
        theirs = [[logprobs for _, logprobs in engine] for engine in answers.values()]
        return probe.compare(version, list(answers), theirs, ours)

    def _answers(self, version: str) -> dict[str, list[Any]]:
        """Of each engine by its name: tokens and log-probs of every answer."""
        deadline = Deadline(self.config.push.timeout_s, f"the probe of version {version}")
        bodies = probe.requests(self.learner.architecture.vocab, self.config.rollout.temperature)
        answers = [self.push.generate(body, deadline) for body in bodies]
        return {name: [(one.token_ids, one.logprobs) for one in
                       probe.parse(name, [answer[name] for answer in answers], version)] for name in answers[0]}
