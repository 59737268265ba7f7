"""Spawned worker processes for code that may hang, crash or eat memory: killed at a deadline, limited, recycled.

A judgement that gets no result raises NoVerdict, whatever the reason. What Pebble's pool leaves open is closed here:

- SIGTERM ends a worker at once: Pebble's handler would not run inside of C code (a power of big integers), and for the
  three seconds until Pebble sends SIGKILL it holds the lock by which the other workers get their tasks.
- a worker dies with its parent (parent-death signal): an idle one would notice the closed pipe, a busy one never.
- exceptions stay in the worker, only their text is sent: one that cannot be unpickled would end the pool, and a
  SystemExit the collector.
- a pool gives up when an idle worker dies (the kernel's out-of-memory killer takes any): it is replaced.
- what a worker has started (a reward that runs a program) outlives it: a worker leads a session of its own, and those
  of dead workers are ended (`Nest`).
"""

from __future__ import annotations

import asyncio
import logging
import multiprocessing
import os
import resource
import signal
import tempfile
import traceback
from collections import Counter
from collections.abc import Callable
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeout
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pebble import ProcessExpired, ProcessPool

from siri_megatron.errors import RunFailed
from siri_megatron.launch import procfs

log = logging.getLogger(__name__)

TASKS_PER_WORKER = 10_000
"""A worker is replaced after so many tasks: caches of the code it runs may grow without bound."""
OUT_OF_MEMORY = 77
"""Exit status of a worker that reached its memory limit: its heap is not worth going on with."""
POOLS = 3
"""Pools that may break under one task before the run is given up."""
PULSE_S = 5.0
"""How often a waiting task looks whether its pool is still there."""
TRACEBACK_CHARACTERS = 4000
JOIN_S = 10.0


class NoVerdict(Exception):
    """A task gave no result.

    Args:
        kind: what happened, in words that do not depend on the task (failures are counted by it).
        detail: more, such as a traceback; may be empty.
    """

    def __init__(self, kind: str, detail: str = "") -> None:
        super().__init__(kind)
        self.kind, self.detail = kind, detail


@dataclass(frozen=True)
class Raised:
    """What a worker sends instead of an exception."""

    kind: str
    detail: str


@dataclass(frozen=True)
class Limits:
    """What the workers may take."""

    workers: int
    timeout_s: float
    """From the start of a task in its worker until the worker is killed."""
    memory_bytes: int
    """Address space of a worker."""


class Nest:
    """The sessions of workers, and what lives on in those whose worker is dead. A worker enters itself: a file."""

    def __init__(self) -> None:
        self._place = tempfile.TemporaryDirectory(prefix="siri-verifier-", ignore_cleanup_errors=True)
        self.name = self._place.name

    def sweep(self) -> None:
        """End what dead workers have left."""
        alive = procfs.parents()
        for file in Path(self.name).iterdir():
            worker = int(file.name)
            if alive.get(worker) != os.getpid():
                procfs.send(() if worker in alive else procfs.in_session(worker), signal.SIGKILL)
                file.unlink(missing_ok=True)

    def close(self) -> None:
        self.sweep()
        self._place.cleanup()


class Workers:
    """Runs functions in worker processes under limits.

    Args:
        prepare: called in each worker before its first task, outside of any deadline; picklable.
    """

    def __init__(self, limits: Limits, prepare: Callable[[], object]) -> None:
        self._limits, self._prepare, self._nest = limits, prepare, Nest()
        self._pool = self._new_pool()
        self._renewing = asyncio.Lock()

    def _new_pool(self) -> ProcessPool:
        context = multiprocessing.get_context("spawn")  # a fork would copy locks held by the event loop's threads
        return ProcessPool(max_workers=self._limits.workers, max_tasks=TASKS_PER_WORKER, initializer=start_worker,
                           initargs=(self._limits.memory_bytes, self._prepare, self._nest.name), context=context)

    async def run(self, function: Callable[..., Any], *args: Any) -> Any:
        """The function's result. Call it from the thread of the event loop: workers die with the thread they start in.

        Raises:
            NoVerdict: killed at the deadline, out of memory, died, or raised.
            RunFailed: workers die as soon as they start.
        """
        for _ in range(POOLS):
            pool = self._pool
            try:
                result = await _result(pool, pool.schedule(attempt, (function, args), timeout=self._limits.timeout_s))
            except FutureTimeout:
                self._nest.sweep()
                raise NoVerdict(f"no result within {self._limits.timeout_s:g} s") from None
            except ProcessExpired as expired:
                self._nest.sweep()
                raise NoVerdict(_death(expired.exitcode)) from None
            except RuntimeError as error:  # of the pool: those of the function arrive as Raised
                log.warning("the pool of verifier workers broke (%s) and is replaced", error)
                await self._renew(pool)
                continue
            if isinstance(result, Raised):
                raise NoVerdict(result.kind, result.detail)
            return result
        raise RunFailed(f"{POOLS} pools of verifier workers died one after the other",
                        rule="a worker lives until it is killed at its deadline",
                        fix="see the workers' own errors in the collector's log; raise reward.memory_gib if it is that")

    async def _renew(self, broken: ProcessPool) -> None:
        async with self._renewing:
            if self._pool is broken:
                self._pool = self._new_pool()
                await asyncio.to_thread(stop, broken)

    async def close(self) -> None:
        await asyncio.to_thread(stop, self._pool)
        self._nest.close()


async def _result(pool: ProcessPool, scheduled: Future[Any]) -> Any:
    """Wait for a task, and for the pool's end: a pool that breaks forgets the tasks that it has not handed out."""
    waiting = asyncio.wrap_future(scheduled)
    try:
        while not (await asyncio.wait({waiting}, timeout=PULSE_S))[0]:
            if not pool.active:
                raise BrokenProcessPool("it ended while a task waited")
        return waiting.result()
    finally:
        waiting.cancel()


def stop(pool: ProcessPool) -> None:
    pool.stop()
    pool.join(JOIN_S)


def start_worker(memory_bytes: int, prepare: Callable[[], object], nest: str) -> None:
    """Before the first task of a worker."""
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    os.setsid()
    Path(nest, str(os.getpid())).touch()
    procfs.die_with_parent()
    parent = multiprocessing.parent_process()
    if parent is None or parent.pid != os.getppid():  # it died before the line above: no signal will come
        os._exit(1)
    prepare()
    resource.setrlimit(resource.RLIMIT_AS, (memory_bytes, memory_bytes))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def attempt(function: Callable[..., Any], args: tuple[Any, ...]) -> Any:
    """Runs in a worker: the function's result, or what it raised."""
    try:
        return function(*args)
    except MemoryError:
        os._exit(OUT_OF_MEMORY)
    except BaseException as error:  # noqa: BLE001  hostile input and foreign code raise anything, SystemExit included
        return Raised(f"{type(error).__name__} in the verifier", _last(traceback.format_exc()))


def _last(text: str) -> str:
    return text if len(text) <= TRACEBACK_CHARACTERS else "..." + text[-TRACEBACK_CHARACTERS:]


def _death(status: int | None) -> str:
    if status == OUT_OF_MEMORY:
        return "out of memory (reward.memory_gib)"
    if status is not None and status < 0:
        return f"worker killed by {signal.Signals(-status).name}"
    return f"worker died with status {status}"


class FailureLog:
    """Counts judgements without verdict by kind; the first of a kind is logged whole, then every tenfold."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()

    def note(self, failure: NoVerdict, what: str) -> None:
        """what: the answer in question."""
        self.counts[failure.kind] += 1
        count = self.counts[failure.kind]
        if count == 1:
            log.warning("no verdict: %s, for %.200r\n%s", failure.kind, what, failure.detail)
        elif set(str(count)) <= {"1", "0"} and str(count).count("1") == 1:
            log.warning("no verdict, %d times so far: %s", count, failure.kind)
