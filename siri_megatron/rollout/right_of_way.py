"""An evaluation has the right of way over rollouts that run ahead on the same engines (`evaluation.rollouts`).

    beside    they share the engines with it
    drained   what has been sent is answered before it begins, what has not waits until it is over
    frozen    what has been sent is aborted, and goes on from the tokens that it has when it is over

Whichever it is, all of an evaluation is of one weight version: pushes wait for it.

Invariants:
    alone: drained and frozen: while an evaluation asks, no rollout request is on an engine.
    nothing_lost: a frozen response keeps its tokens with their log-probs and versions, and is charged for them.
    always_opens: however an evaluation ends, the rollouts go on.
    bounded: it waits `wait_s` for the rollouts at most.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Literal

from siri_megatron.errors import EngineError
from siri_megatron.rollout.engine_api import ABORTED, Sample
from siri_megatron.rollout.engine_client import EngineClient, gather_or_cancel
from siri_megatron.rollout.partial import closed, joined, rest_of
from siri_megatron.rollout.request import Answer, Request

Policy = Literal["beside", "drained", "frozen"]


class RightOfWay:
    """Of the evaluations of one collector."""

    def __init__(self, policy: Policy, wait_s: float) -> None:
        self._policy, self._wait_s = policy, wait_s
        self._evaluations, self._sent = 0, 0
        self._open, self._answered, self._freeze = asyncio.Event(), asyncio.Event(), asyncio.Event()
        self._open.set()
        self._answered.set()

    @asynccontextmanager
    async def evaluating(self, what: str) -> AsyncIterator[None]:
        """Within it, rollouts stand aside as the policy says.

        Raises:
            EngineError: requests of rollouts are on the engines still when the time is over.
        """
        if self._policy == "beside":
            yield
            return
        self._evaluations += 1
        self._open.clear()
        if self._policy == "frozen":
            self._freeze.set()
        try:
            await self._all_answered(what)
            yield
        finally:
            self._evaluations -= 1
            if not self._evaluations:
                self._freeze = asyncio.Event()  # a new one: who is still being aborted has been told so
                self._open.set()

    async def _all_answered(self, what: str) -> None:
        try:
            async with asyncio.timeout(self._wait_s):
                await self._answered.wait()
        except TimeoutError:
            raise EngineError(
                f"{what}: {self._sent} requests of rollouts are on the engines still after {self._wait_s:g} s",
                rule=f"evaluation.rollouts={self._policy}: an evaluation has the engines to itself within the time of "
                     "the steps under way (rollout.timeout_s)",
                fix="look into the engines' logs; raise rollout.timeout_s if they are merely slow") from None

    async def opened(self) -> None:
        """Wait while an evaluation has the right of way."""
        while not self._open.is_set():
            await self._open.wait()

    @asynccontextmanager
    async def sending(self) -> AsyncIterator[list[asyncio.Event]]:
        """A rollout's request is on its way within it, once no evaluation has the right of way; what interrupts it."""
        await self.opened()
        self._sent += 1
        self._answered.clear()
        try:
            yield [self._freeze] if self._policy == "frozen" else []
        finally:
            self._sent -= 1
            if not self._sent:
                self._answered.set()


class Rollouts:
    """The engines as rollouts see them: requests that stand aside for evaluations."""

    def __init__(self, engines: EngineClient, way: RightOfWay) -> None:
        self._engines, self._way = engines, way

    async def generate(self, request: Request, *, version: str, interrupt: asyncio.Event | None = None) -> Answer:
        """As `EngineClient.generate`; what an evaluation has frozen goes on here.

        Args:
            interrupt: of the caller: once it is set, the answer is what has been sampled until then.
        """
        started = time.perf_counter()
        answer = await self._sent(request, version, interrupt)
        samples = [closed(sample, request.max_tokens) for sample in answer.samples]
        if not _goes_on(samples, interrupt):
            return replace(answer, samples=samples)
        while _goes_on(samples, interrupt):
            samples = await gather_or_cancel([self._go_on(request, version, sample, interrupt) for sample in samples])
        return replace(answer, samples=samples, seconds=time.perf_counter() - started)

    async def _go_on(self, request: Request, version: str, sample: Sample, interrupt: asyncio.Event | None) -> Sample:
        rest = rest_of(request, sample, request.max_tokens)
        if rest is None:
            return sample
        await self._way.opened()
        if _told(interrupt):
            return sample
        answer = await self._sent(rest, version, interrupt)
        return closed(joined(sample, answer.samples[0]), request.max_tokens)

    async def _sent(self, request: Request, version: str, interrupt: asyncio.Event | None) -> Answer:
        async with self._way.sending() as freezes:
            return await self._engines.generate(request, version=version,
                                                interrupts=[*freezes, *([interrupt] if interrupt else [])])


def _goes_on(samples: list[Sample], interrupt: asyncio.Event | None) -> bool:
    """Something is unfinished, and it was not the caller who stopped it."""
    return any(sample.finish_reason == ABORTED for sample in samples) and not _told(interrupt)


def _told(interrupt: asyncio.Event | None) -> bool:
    return interrupt is not None and interrupt.is_set()
