"""Sends requests to the fleet and brings back checked answers: which engine is asked, and what is tried again.

What is tried again: a request whose engine left the fleet, whose connection broke (an idle one dropped by the server,
an engine that is dying) or that met a server error: once, on another engine if there is one. A second failure of the
same request is final, unless that engine turns out to be dead as well (at most `MAX_FAILURES` in all). What is not
tried again: HTTP 400, which says that the request is wrong and will be wrong again (slime #2260), a refused key, a
wrong answer.

Invariants:
    one_answer: `generate` returns one answer or raises; what an abandoned attempt still says is not read.
    only_confirmed_are_asked: a request goes to engines that are up, not suspect, and have confirmed a weight version
        that it may be sampled under.
    left_out_is_given_up: requests in flight on an engine that a push left out (it may be paused) are issued again.
    within_the_context: a request whose prompt and cap do not fit the engines' context is not sent.
    held_back_only: the engines' limits (`rollout.kv_limits`) say when a request is sent, never what it asks for.
    waits_for_engines: while none of these serves but one may come, a request waits; if one is up without the weights,
        it fails with StaleFleet, since only a push can help.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Coroutine, Sequence
from typing import Any

from siri_megatron.errors import EngineError, StaleFleet
from siri_megatron.observe.spans import BusyLog
from siri_megatron.rollout.engine_http import Broken, EngineHttp, open_session
from siri_megatron.rollout.fleet import Engine, Fleet, Pushed
from siri_megatron.rollout.health import Key
from siri_megatron.rollout.kv_limits import KvLimits
from siri_megatron.rollout.load_watch import LoadWatch
from siri_megatron.rollout.request import Answer, Home, Request, check_versions
from siri_megatron.rollout.router import Router

log = logging.getLogger(__name__)

MAX_FAILURES = 4
DEATH_S = 3.0
"""How long after a failed request the supervisor may take to say that its engine is dead."""


class EngineClient:
    """The fleet as it changes: tell it by `follow`. Made within a running event loop; `close` it.

    Args:
        key: the run's key.
        connections: most connections at a time.
        context: tokens that a prompt and its response may have together; None: the engines may refuse it.
        max_num_seqs: samples that an engine runs at a time; None: the engines' load is not asked for, and nothing is
            held back by it.
        busy: where it is noted when engines are busy.
    """

    def __init__(self, key: str, *, connections: int, context: int | None = None, max_num_seqs: int | None = None,
                 busy: BusyLog | None = None) -> None:
        self._busy, self._context = busy, context
        self._fleet, self._pushed = Fleet(0, ()), Pushed()
        self._router: Router[Key, Home] = Router(())
        self._lost: dict[Key, asyncio.Event] = {}  # of each member; set when it leaves
        self._changed = asyncio.Event()  # set, and replaced, at each change
        self._session = open_session(key, connections)
        self._http = EngineHttp(self._session)
        self._limits = KvLimits(max_num_seqs or 1)
        self._watch = LoadWatch(self._limits, self._session, self._serving, self._wake)
        self._watching = asyncio.create_task(self._watch.run(), name="watch loads") if max_num_seqs else None

    async def close(self) -> None:
        if self._watching:
            self._watching.cancel()
            await asyncio.gather(self._watching, return_exceptions=True)
        await self._session.close()

    def follow(self, fleet: Fleet, pushed: Pushed) -> None:
        """From now on the fleet is this. Requests in flight on an engine that left are given up and issued again."""
        if (fleet, pushed) == (self._fleet, self._pushed):
            return
        members = {engine.key for engine in fleet.engines}
        left_out = members - pushed.keys if pushed.keys and pushed.version != self._pushed.version else set()
        self._fleet, self._pushed = fleet, pushed
        for key in self._lost.keys() - (members - left_out):
            self._lost.pop(key).set()
        for key in members - self._lost.keys():
            self._lost[key] = asyncio.Event()
        self._router.change(engine.key for engine in self._serving())
        self._limits.change(members)
        self._wake()

    def take_load_figures(self) -> dict[str, float]:
        """What engines have said of their load since the last call, under the names of `observe.metrics`."""
        return self._watch.take_figures()

    def _wake(self) -> None:
        """Whoever waits for an engine looks again."""
        self._changed.set()
        self._changed = asyncio.Event()

    def forget_groups(self, job: str) -> None:
        """A job has ended: nothing of it stays with an engine."""
        self._router.forget({home for home in self._router.homes if home[0] == job})

    def situation(self) -> str:
        """Why requests wait for an engine, e.g. `no engine serves: engine 0 is suspect`; empty if they do not."""
        if self._serving():
            return ""
        return "no engine serves: " + (", ".join(
            f"engine {engine.index} " + ("is suspect" if engine.suspect else "lacks the weights")
            for engine in self._fleet.engines) or "none is up")

    async def generate(self, request: Request, *, version: str, interrupts: Sequence[asyncio.Event] = ()) -> Answer:
        """Sample, under weights `version`, or older ones by `request.lag`. The caller sets the deadline.

        Args:
            interrupts: once one is set, the answer is what has been sampled until then (samples may be ABORTED).

        Raises:
            StaleFleet: engines are up, but none has these weights.
            EngineError: two attempts failed, or the answer is wrong or was sampled under other weights.
        """
        self._check_context(request)
        failed: list[tuple[Engine, str]] = []
        while True:
            engine = await self._assigned(request, version, failed)
            try:
                return await self._ask(engine, request, version, interrupts)
            except Broken as broken:
                failed.append((engine, str(broken)))
            finally:
                self._router.release(engine.key, request.tokens)
                self._limits.ended(engine.key, request.n)
                self._wake()
            if len(failed) > 1 and (len(failed) == MAX_FAILURES or not await self._dies(engine)):
                raise _gave_up(request, failed)

    def _check_context(self, request: Request) -> None:
        if self._context is not None and (need := len(request.prompt_ids) + request.max_tokens) > self._context:
            raise EngineError(f"group {request.group}: a prompt of {len(request.prompt_ids)} tokens and a cap of "
                              f"{request.max_tokens} make {need}, the engines' context is {self._context}",
                              rule="prompt + cap <= engines.max_model_len",
                              fix=f"set engines.max_model_len={need} or more, or lower data.max_prompt_tokens")

    async def _assigned(self, request: Request, version: str, failed: Sequence[tuple[Engine, str]]) -> Engine:
        """The engine for the next attempt, waiting for one if there is none now, or none has room."""
        avoid = {engine.key for engine, _ in failed}
        while True:
            await self._serves(request, version)
            full = {one.key for one in self._serving() if not self._limits.has_room(one.key, request.n)}
            key = self._router.assign(request.home, request.tokens, avoid=avoid, full=full)
            if key is not None:
                self._limits.sent(key, request.n)
                return next(engine for engine in self._fleet.engines if engine.key == key)
            await self._changed.wait()

    async def _serves(self, request: Request, version: str) -> None:
        """Wait until an engine with the weights serves."""
        while not self._serving() or not request.accepts(self._pushed.version, version):
            if self._needs_push(request, version):
                raise StaleFleet(f"no engine has weight version {version}, the newest is {self._pushed.version!r}; "
                                 f"{self.situation()}",
                                 rule="an engine serves only the weights that it has confirmed",
                                 fix="push the weights to every engine before collecting")
            log.warning("group %d waits for an engine: %s", request.group, self.situation())
            await self._changed.wait()

    def _serving(self) -> list[Engine]:
        return [one for one in self._fleet.engines if one.key in self._pushed.keys and not one.suspect]

    def _needs_push(self, request: Request, version: str) -> bool:
        """Somebody is up without these weights, and nobody who has them may come back."""
        up = self._fleet.engines
        may_come = request.accepts(self._pushed.version, version) and any(one.key in self._pushed.keys for one in up)
        return not may_come and any(not one.suspect for one in up)

    async def _dies(self, engine: Engine) -> bool:
        """Has it left the fleet, or does it soon?"""
        if engine.key not in self._lost:
            return True
        try:
            async with asyncio.timeout(DEATH_S):
                await self._lost[engine.key].wait()
        except TimeoutError:
            return False
        return True

    async def _ask(self, engine: Engine, request: Request, version: str,
                   interrupts: Sequence[asyncio.Event]) -> Answer:
        started, samples = time.perf_counter(), []
        if self._busy:
            self._busy.started(engine.index)
        try:
            payload = await self._while_member(engine, self._http.ask(engine.url, request.body(), interrupts))
            samples = request.parse(payload, aborted=any(event.is_set() for event in interrupts))
        finally:
            if self._busy:
                self._busy.ended(engine.index, sum(len(sample.token_ids) for sample in samples))
        check_versions(samples, request, version, engine.url)
        return Answer(samples, engine.index, time.perf_counter() - started)

    async def _while_member(self, engine: Engine, asking: Coroutine[Any, Any, Any]) -> Any:
        """The answer; Broken at once when the engine leaves (its connection need not break: it may be stopped)."""
        answer, lost = asyncio.ensure_future(asking), asyncio.ensure_future(self._lost[engine.key].wait())
        try:
            await asyncio.wait({answer, lost}, return_when=asyncio.FIRST_COMPLETED)
            if answer.done():
                return answer.result()
            raise Broken("it left the fleet")
        finally:
            answer.cancel()
            lost.cancel()


def _gave_up(request: Request, failed: Sequence[tuple[Engine, str]]) -> EngineError:
    return EngineError(f"no engine could sample group {request.group}: "
                       + "; then ".join(f"{engine.url}: {said}" for engine, said in failed),
                       rule="a broken request is issued again once, on another engine if there is one",
                       fix="read the engines' logs")


async def gather_or_cancel(coroutines: Sequence[Any]) -> list[Any]:
    """Results in order; at the first exception the others are cancelled, awaited, and it is raised."""
    tasks = [asyncio.ensure_future(coroutine) for coroutine in coroutines]
    try:
        return list(await asyncio.gather(*tasks))
    except BaseException:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        raise
