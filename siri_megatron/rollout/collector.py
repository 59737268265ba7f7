"""Collects the rollouts of a step: samples, verifies, applies the cap rule, appends finished groups to the ledger.

    prompts of the step ─► engines (G samples a prompt, max_tokens = cap) ─► verify at the cap and at every budget
                                                                              │
             stats ◄── closed step ◄── ledger: one segment a finished group ◄─┘

A closed step whose stamp and identity match is taken as it is (resume); an open one of a killed collector is gone on
with. Either way a group keeps the stamp under which it was admitted: the step's, with a smaller cap where whoever
orders the step names one for its prompt.

With `rollout.max_refill` groups without a signal are replaced by further ones (`rollout.refill`), numbered behind those
of the step's own prompts. All of them stay in the ledger.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from siri_megatron.budget.method import method_at
from siri_megatron.budget.prompt_caps import check_caps
from siri_megatron.budget.step_budget import StepBudget
from siri_megatron.config import RunConfig, identity_hash
from siri_megatron.config.refill import HISTORY
from siri_megatron.data.prompts import Prompt
from siri_megatron.data.sampler import PromptSampler
from siri_megatron.errors import DataError, EngineError
from siri_megatron.ledger.index import step_path
from siri_megatron.ledger.read import StepRows, open_step
from siri_megatron.ledger.schema import Rollout
from siri_megatron.ledger.write import StepWriter
from siri_megatron.reward.verifier import Scored, Verifier, score
from siri_megatron.rollout.engine_api import Sample
from siri_megatron.rollout.engine_client import EngineClient, gather_or_cancel
from siri_megatron.rollout.forced import ForcedAnswer
from siri_megatron.rollout.lowering import InFlight
from siri_megatron.rollout.outliers import cut_outliers
from siri_megatron.rollout.refill import Refill, Tally
from siri_megatron.rollout.request import Answer, Request
from siri_megatron.rollout.right_of_way import RightOfWay, Rollouts
from siri_megatron.rollout.sampling import request_seed
from siri_megatron.rollout.staleness import staleness_stats
from siri_megatron.rollout.stats import step_stats


@dataclass
class Progress:
    """How far a job is; read by whoever polls."""

    groups: int = 0
    groups_done: int = 0
    tokens: int = 0
    answered_at: float = 0.0
    """perf_counter of the newest answer of an engine."""

    def answered(self, samples: Sequence[Sample]) -> None:
        self.tokens += sum(len(sample.token_ids) for sample in samples)
        self.answered_at = time.perf_counter()

    def to_json(self) -> dict[str, int]:
        return {"groups": self.groups, "groups_done": self.groups_done, "tokens": self.tokens}


class Collector:
    """Fills the ledger of one run.

    Args:
        prompts: the training prompts; a step takes `rollout.prompts_per_step` of them.
        stop_ids: tokens that end a response.
        forced: how responses are ended in phases with `overlong: forced`.
    """

    def __init__(self, config: RunConfig, ledger: Path, prompts: Sequence[Prompt], stop_ids: Sequence[int],
                 verifier: Verifier, forced: ForcedAnswer | None = None) -> None:
        self._config, self._ledger, self._prompts = config, ledger, prompts
        self._stop_ids, self._verifier, self._forced = tuple(stop_ids), verifier, forced
        self._identity = identity_hash(config)
        self._sampler = PromptSampler(len(prompts), config.seed)
        self._in_flight = InFlight()
        self.right_of_way = RightOfWay(config.evaluation.rollouts, config.evaluation_wait_s)
        self._refill = Refill.of(config.rollout.prompts_per_step, config.rollout.max_refill)

    async def collect(self, budget: StepBudget, version: str, engines: EngineClient, progress: Progress,
                      caps: Mapping[str, int] | None = None) -> dict[str, Any]:
        """Fill and close the ledger step of `budget`; returns its statistics.

        Args:
            version: weight version that every token must be sampled under, or under one of `rollout.lag` older ones.
            caps: prompt -> cap, of the prompts whose cap is below the step's.

        Raises:
            EngineError: an engine failed, or the time of `rollout.timeout_s` went by. Finished groups stay for
                the next attempt.
            DataError: the step is closed under another stamp or identity.
        """
        started, caps = time.perf_counter(), caps or {}
        reused = step_path(self._ledger, budget.step).exists()
        if not reused:
            await self._fill(budget, version, engines, progress, caps)
        rows = self._checked(budget, caps)
        finished = time.perf_counter()
        answered = progress.answered_at or finished
        ahead = {"sampling_s": answered - started, **staleness_stats(rows, caps)} if self._config.rollout.lag else {}
        return {**step_stats(rows, self._config.rollout), **ahead, **engines.take_load_figures(), "reused": reused,
                "generation_s": answered - started, "verification_s": finished - answered}

    async def _fill(self, budget: StepBudget, version: str, engines: EngineClient, progress: Progress,
                    caps: Mapping[str, int]) -> None:
        writer = StepWriter(self._ledger, budget, self._identity)
        try:
            async with within(self._config.collect_timeout_s(budget.cap), "rollout.timeout_s", job_of(budget.step),
                              progress, engines):
                rollouts = Rollouts(engines, self.right_of_way)
                for asked in self._rounds(budget, writer, progress):
                    await gather_or_cancel([
                        self._group(replace(budget, cap=caps.get(prompt.id, budget.cap)), version, group, prompt,
                                    rollouts, writer, progress) for group, prompt in asked])
            writer.close()
        finally:
            writer.abandon()

    def _rounds(self, budget: StepBudget, writer: StepWriter, progress: Progress
                ) -> Iterator[list[tuple[int, Prompt]]]:
        """The groups to sample, round by round, without those that are in the step already. Each round is to be
        finished before the next one is asked for."""
        groups, earlier, so_far = self._groups(budget.step), self._earlier(budget.step), Tally()
        while more := self._refill.further(so_far, earlier):
            asked = groups[:so_far.groups + more]
            missing = [(group, prompt) for group, prompt in asked if group not in writer.groups]
            progress.groups, progress.groups_done = len(asked), len(asked) - len(missing)
            yield missing
            so_far = self._tally(writer.so_far(), below=len(asked))

    def _earlier(self, step: int) -> Tally:
        """The groups of the last steps that are consumed for certain before a step is asked for."""
        if not self._refill.bound:
            return Tally()
        newest = step - 1 - self._config.rollout.lag
        known = [at for at in range(newest - HISTORY + 1, newest + 1) if step_path(self._ledger, at).exists()]
        return sum((self._tally(open_step(self._ledger, at)) for at in known), Tally())

    def _tally(self, rows: StepRows, *, below: int | None = None) -> Tally:
        overlong = method_at(self._config, rows.budget.phase).overlong
        return Tally.of(rows, overlong, self._config.reward.overlong_buffer, below=below)

    async def _group(self, budget: StepBudget, version: str, group: int, prompt: Prompt, engines: Rollouts,
                     writer: StepWriter, progress: Progress) -> None:
        """Sample and score one group. budget: the group's own stamp."""
        budget, answer = await self._sampled(budget, version, group, prompt, engines)
        progress.answered(answer.samples)
        grid, reward = self._config.rollout.budget_grid, self._config.reward
        scored = await score_all(self._verifier, prompt, answer.samples, budget.cap, grid, self._stop_ids)
        if reward.length_rule == "dot":
            samples, scored = await cut_outliers(self._verifier, prompt, answer.samples, scored, reward.dot,
                                                 cap=budget.cap, grid=grid, stop_ids=self._stop_ids)
            answer = replace(answer, samples=samples)
        writer.append([rollout_row(budget, group, sample, prompt, answer, scored[sample])
                       for sample in range(len(answer.samples))])
        progress.groups_done += 1

    async def _sampled(self, budget: StepBudget, version: str, group: int, prompt: Prompt,
                       engines: Rollouts) -> tuple[StepBudget, Answer]:
        """A group's answer and its stamp, whose cap is smaller if the cap has fallen meanwhile."""
        if self._config.rollout.lowered_cap == "cut":
            return await self._in_flight.cut(budget, self._request(budget, group, prompt), version, engines)
        if self._config.rollout.lowered_cap == "drop":
            return await self._in_flight.drop(budget, lambda own: self._generate(own, version, group, prompt, engines))
        return budget, await self._generate(budget, version, group, prompt, engines)

    def admitted(self, budget: StepBudget) -> None:
        """A step is ordered: earlier ones in flight may have to go down to its cap."""
        if self._config.rollout.lowered_cap != "keep":
            self._in_flight.lower(budget)

    async def _generate(self, budget: StepBudget, version: str, group: int, prompt: Prompt,
                        engines: Rollouts) -> Answer:
        request = self._request(budget, group, prompt)
        if method_at(self._config, budget.phase).overlong != "forced":
            return await engines.generate(request, version=version)
        assert self._forced, "the config is refused without a forced text"
        started = time.perf_counter()
        answer = await engines.generate(self._forced.before(request), version=version)
        ended = [self._ended(budget, version, request, prompt, number, sample, engines)
                 for number, sample in enumerate(answer.samples)]
        return replace(answer, samples=await gather_or_cancel(ended), seconds=time.perf_counter() - started)

    async def _ended(self, budget: StepBudget, version: str, request: Request, prompt: Prompt, number: int,
                     sample: Sample, engines: Rollouts) -> Sample:
        """A sample as it is if it has ended, else with a forced answer."""
        if sample.finish_reason != "length" or self._forced is None:
            return sample
        seed = self._seed(f"step-{budget.step}/forced-{number}", request.group, prompt)
        answer = await engines.generate(self._forced.after(request, sample, seed), version=version)
        return self._forced.joined(sample, answer.samples[0])

    def of_step(self, step: int, caps: Mapping[str, int]) -> dict[str, int]:
        """Those of some caps whose prompts a step takes, or may take to replace others."""
        return {prompt.id: caps[prompt.id] for _, prompt in self._groups(step) if prompt.id in caps}

    def _groups(self, step: int) -> list[tuple[int, Prompt]]:
        """Every group that a step may ask for: of its own prompts, then of those that may replace some."""
        own = self._sampler.take(step, self._refill.wanted)
        chosen = own + self._sampler.further(step, self._refill.wanted, self._refill.bound)
        return [(group, self._prompts[index]) for group, index in enumerate(chosen)]

    def _request(self, budget: StepBudget, group: int, prompt: Prompt) -> Request:
        rollout = self._config.rollout
        return Request(group, prompt.token_ids, rollout.samples_per_prompt, budget.cap, rollout.temperature,
                       self._seed(f"step-{budget.step}", group, prompt), self._stop_ids,
                       job=job_of(budget.step), lag=rollout.lag, priority=budget.step + 1 if rollout.lag else 0)

    def _seed(self, purpose: str, group: int, prompt: Prompt) -> int | None:
        return request_seed(self._config.seed, purpose, group, prompt.id) if self._config.reproducible else None

    def _checked(self, budget: StepBudget, caps: Mapping[str, int]) -> StepRows:
        rows = open_step(self._ledger, budget.step)
        if (rows.budget, rows.identity) != (budget, self._identity):
            raise DataError(
                f"ledger step {budget.step} is closed under {asdict(rows.budget)} of identity {rows.identity}, "
                f"asked for is {asdict(budget)} of {self._identity}",
                rule="a closed step is used again only under the same stamp and identity",
                fix="start a run under another name, or remove that directory of the ledger")
        check_caps(rows, budget, caps, lowered=self._config.rollout.lowered_cap != "keep")
        return rows


def job_of(step: int) -> str:
    """Name of the collection of a step, in messages and for the router."""
    return f"step {step}"


async def score_all(verifier: Verifier, prompt: Prompt, samples: Sequence[Sample], cap: int, grid: Iterable[int],
                    stop_ids: Sequence[int]) -> list[Scored]:
    """Score the samples of one prompt, all at once."""
    budgets = tuple(grid)
    return await gather_or_cancel([score(verifier, prompt, sample.token_ids, cap, budgets, stop_ids)
                                   for sample in samples])


def rollout_row(budget: StepBudget, group: int, sample: int, prompt: Prompt, answer: Answer,
                scored: Scored) -> Rollout:
    """The ledger row of one sample."""
    sampled = answer.samples[sample]
    return Rollout(
        step=budget.step, phase=budget.phase, cap=budget.cap, cap_version=budget.version,
        group=group, sample=sample, prompt_id=prompt.id, tier=prompt.tier, answer=prompt.answer,
        prompt_ids=list(prompt.token_ids), response_ids=sampled.token_ids, logprobs=sampled.logprobs,
        finish_reason=sampled.finish_reason, truncated=scored.truncated, outcome=scored.outcome,
        reward=scored.reward, budget_rewards=list(scored.budgets.values()), spans=sampled.spans,
        engine=answer.engine, seconds=answer.seconds, forced_start=sampled.forced[0], forced_end=sampled.forced[1])


@asynccontextmanager
async def within(seconds: float, key: str, what: str, progress: Progress,
                 engines: EngineClient) -> AsyncIterator[None]:
    """One job on the engines, with a deadline that says what was waited for.

    Args:
        key: the configuration key that gives the seconds.
        what: the job, as its requests name it.

    Raises:
        EngineError: the time is over; says how many groups were done.
    """
    try:
        async with asyncio.timeout(seconds):
            yield
    except TimeoutError:
        waiting = engines.situation()
        raise EngineError(
            f"{what}: {progress.groups_done} of {progress.groups} groups after {seconds:g} s, "
            f"{progress.tokens} tokens so far" + (f"; {waiting}" if waiting else ""),
            rule=f"the samples come within {key}",
            fix=f"look into the engines' logs; raise {key} if they are merely slow") from None
    finally:
        engines.forget_groups(what)
