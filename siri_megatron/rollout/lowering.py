"""Groups in flight when the cap falls: a later step with a smaller cap has been admitted (`rollout.lowered_cap`).

    keep   they finish under their own stamp
    cut    what they have is taken; a response beyond the smaller cap is truncated there, the others go on up to it
    drop   what they have is thrown away, and the group is sampled anew under the smaller cap

Groups that are finished, and groups of later steps, stay as they are. A lowered group has the smaller cap in its stamp:
its reward and truncation are those at that cap. Note that only groups that take long are lowered.

Invariants:
    only_falling: a group's cap never rises, and never falls below that of a step admitted later.
    whole_groups: all samples of a group have one cap.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

from siri_megatron.budget.step_budget import StepBudget
from siri_megatron.rollout.engine_api import Sample
from siri_megatron.rollout.engine_client import gather_or_cancel
from siri_megatron.rollout.partial import closed, joined, rest_of
from siri_megatron.rollout.request import Answer, Request
from siri_megatron.rollout.right_of_way import Rollouts

log = logging.getLogger(__name__)


@dataclass(eq=False)
class Flight:
    """A group that is being sampled. `lowered` is set when `cap` falls."""

    step: int
    cap: int
    lowered: asyncio.Event = field(default_factory=asyncio.Event)


class InFlight:
    """All groups of a collector that are being sampled."""

    def __init__(self) -> None:
        self._flights: dict[Flight, None] = {}  # in the order of admission

    def lower(self, admitted: StepBudget) -> None:
        """A step is admitted: earlier ones have no larger cap than it from now on."""
        above = [one for one in self._flights if one.step < admitted.step and one.cap > admitted.cap]
        for flight in above:
            flight.cap = admitted.cap
            flight.lowered.set()
        if above:
            log.info("step %d has cap %d: %d groups in flight of earlier steps are lowered to it", admitted.step,
                     admitted.cap, len(above))

    async def drop(self, budget: StepBudget,
                   sample: Callable[[StepBudget], Awaitable[Answer]]) -> tuple[StepBudget, Answer]:
        """Sample a group, anew when its cap falls; returns the stamp that it has in the end."""
        with self._flight(budget) as flight:
            while True:
                flight.lowered.clear()
                budget = replace(budget, cap=flight.cap)
                if (answer := await _unless(flight.lowered, sample(budget))) is not None:
                    return budget, answer

    async def cut(self, budget: StepBudget, request: Request, version: str,
                  engines: Rollouts) -> tuple[StepBudget, Answer]:
        """Sample a group, cut when its cap falls; returns the stamp that it has in the end."""
        started = time.perf_counter()
        with self._flight(budget) as flight:
            answer = await engines.generate(request, version=version, interrupt=flight.lowered)
            samples, seconds = answer.samples, answer.seconds
            while (cap := flight.cap) < budget.cap:
                budget, samples = replace(budget, cap=cap), [closed(sample, cap) for sample in samples]
                flight.lowered.clear()
                samples = await gather_or_cancel([self._go_on(flight, request, version, sample, engines)
                                                  for sample in samples])
                seconds = time.perf_counter() - started
            return budget, replace(answer, samples=samples, seconds=seconds)

    async def _go_on(self, flight: Flight, request: Request, version: str, sample: Sample,
                     engines: Rollouts) -> Sample:
        rest = rest_of(request, sample, flight.cap)
        if rest is None:
            return sample
        answer = await engines.generate(rest, version=version, interrupt=flight.lowered)
        return joined(sample, answer.samples[0])

    @contextmanager
    def _flight(self, budget: StepBudget) -> Iterator[Flight]:
        flight = Flight(budget.step, budget.cap)
        self._flights[flight] = None
        try:
            yield flight
        finally:
            del self._flights[flight]


async def _unless(event: asyncio.Event, work: Awaitable[Answer]) -> Answer | None:
    """The work's result; None, with the work cancelled, if the event comes first."""
    doing, told = asyncio.ensure_future(work), asyncio.ensure_future(event.wait())
    try:
        await asyncio.wait({doing, told}, return_when=asyncio.FIRST_COMPLETED)
        return await doing if doing.done() else None
    finally:
        doing.cancel()
        told.cancel()
        await asyncio.gather(doing, told, return_exceptions=True)
