"""Run functions on real learner ranks (gloo processes) from a test, and never leave one behind.

    with Ranks(2) as ranks:                     # processes start once, imports are paid once
        results = ranks.run(check, argument)    # check(rank: Rank, argument) on every rank -> [result of each]

The processes are forked from a clean server that has imported the learner but started no thread. They have entered
`megatron_runtime()`. They die with the test process (PR_SET_PDEATHSIG), on a timeout, and at the end of the `with`.
"""

from __future__ import annotations

import ctypes
import gc
import multiprocessing
import os
import pickle
import shutil
import signal
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import count
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from siri_megatron.config import LearnerConfig
from siri_megatron.paths import RunDir

PRELOAD = ["siri_megatron.learner.learner", "torch._dynamo"]
"""The second is what a first optimizer imports: a second of every pool, else."""
PR_SET_PDEATHSIG = 1


class RankFailed(AssertionError):
    """A function raised on some rank, or a rank did not answer in time."""


@dataclass(frozen=True)
class Rank:
    """Who a function runs as."""

    rank: int
    world: int
    directory: Path
    """A directory of this call, shared by its ranks."""
    opened: Iterator[int] = field(default_factory=count)
    """Numbers of the control planes of this call."""

    @contextmanager
    def control(self, layout: LearnerConfig) -> Any:
        """The next control plane between the ranks of this call.

        Each has a place of its own: a rank that is done with one must not find its store again, which rank 0 keeps open
        until all have left.
        """
        from siri_megatron.learner.control import ControlPlane
        place = self.directory / f"control-{next(self.opened)}"
        place.mkdir(exist_ok=True)
        with ControlPlane.open(RunDir(place), self.rank, self.world, layout) as control:
            yield control

    @contextmanager
    def learner(self, settings: Any, *, bucket: int | None = None) -> Any:
        """A learner of these settings (their layout must have as many ranks), closed at the end.

        bucket: parameters that are reduced or gathered together; by default a test's model is less than one bucket, so
        that there would be nothing to overlap.
        """
        from siri_megatron.learner import optimizer
        from siri_megatron.learner.learner import Learner
        with self.control(settings.layout) as control:
            before, optimizer.BUCKET_PARAMETERS = optimizer.BUCKET_PARAMETERS, bucket
            try:
                learner = Learner(settings, control)
            finally:
                optimizer.BUCKET_PARAMETERS = before
            try:
                yield learner
            finally:
                learner.close()


class Ranks:
    """A pool of rank processes."""

    def __init__(self, world: int) -> None:
        self.world = world
        self._root = Path(tempfile.mkdtemp(prefix="ranks-"))
        self._calls = 0
        self._processes: list[Any] = []
        self._pipes: list[Connection] = []

    def __enter__(self) -> Ranks:
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(PRELOAD)
        for rank in range(self.world):
            here, there = context.Pipe()
            process = context.Process(target=_serve, args=(rank, self.world, there), daemon=True)
            process.start()
            there.close()
            self._processes.append(process)
            self._pipes.append(here)
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()
        shutil.rmtree(self._root, ignore_errors=True)

    def run(self, function: Callable[..., Any], *args: Any, timeout_s: float = 180.0) -> list[Any]:
        """Call function(Rank, *args) on every rank; function must be importable.

        Raises:
            RankFailed: with the tracebacks of the ranks that raised, or who did not answer. The pool is dead then.
        """
        assert self._processes, "the pool is not running (an earlier call failed?)"
        self._calls += 1
        directory = self._root / str(self._calls)
        directory.mkdir()
        call = pickle.dumps((function, args, directory))
        for pipe in self._pipes:
            pipe.send_bytes(call)
        answers = self._answers(function.__name__, time.monotonic() + timeout_s)
        return [answers[rank] for rank in range(self.world)]

    def kill(self) -> None:
        """End every process at once."""
        for process in self._processes:
            process.kill()
        for process in self._processes:
            process.join(5)
        self._processes, self._pipes = [], []

    def _answers(self, name: str, deadline: float) -> dict[int, Any]:
        """Answers by rank. A failure elsewhere gives the others two seconds to fail in their own words."""
        answers: dict[int, Any] = {}
        failures: dict[int, str] = {}
        while len(answers) + len(failures) < self.world and time.monotonic() < deadline:
            for rank, pipe in enumerate(self._pipes):
                if rank in answers or rank in failures or not pipe.poll(0.01):
                    continue
                good, answer = _received(pipe)
                (answers if good else failures)[rank] = answer
                if not good:
                    deadline = min(deadline, time.monotonic() + 2.0)
        if len(answers) == self.world:
            return answers
        self.kill()
        said = dict.fromkeys(range(self.world), "no answer in time") | dict.fromkeys(answers, "fine") | failures
        raise RankFailed("\n".join(f"{name} on rank {rank}: {said[rank]}" for rank in sorted(said)))


def run_ranks(function: Callable[..., Any], world: int, *args: Any, timeout_s: float = 180.0) -> list[Any]:
    """One call on fresh processes."""
    with Ranks(world) as ranks:
        return ranks.run(function, *args, timeout_s=timeout_s)


def _received(pipe: Connection) -> tuple[bool, Any]:
    try:
        good, answer = pickle.loads(pipe.recv_bytes())
        return good, answer
    except EOFError:
        return False, "the process died"


def _serve(rank: int, world: int, pipe: Connection) -> None:
    """Body of a rank process: answer calls until the pipe closes."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    import torch

    from siri_megatron.learner.runtime import megatron_runtime
    torch.set_num_threads(1)
    gc.freeze()
    with megatron_runtime():
        while True:
            try:
                function, args, directory = pickle.loads(pipe.recv_bytes())
            except EOFError:
                os._exit(0)
            pipe.send_bytes(pickle.dumps(_answer(function, Rank(rank, world, directory), args)))
            # Process groups die in reference cycles only: fifty threads a learner, each of which wakes every 10 ms.
            gc.collect()


def _answer(function: Callable[..., Any], rank: Rank, args: tuple[Any, ...]) -> tuple[bool, Any]:
    try:
        return True, function(rank, *args)
    except BaseException:  # noqa: BLE001 - handed to the test, which raises it
        return False, traceback.format_exc()
