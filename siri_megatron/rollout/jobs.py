"""Work that goes on in the background while clients poll for it.

Invariants:
    idempotent: asking again for a job that runs or is done, with the same order, starts nothing.
    one_order: while a job runs, asking for the same name with another order is refused.
    again_after_failure: asking again for a failed job, or a done one with another order, starts it anew.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any

from siri_megatron.errors import SiriError
from siri_megatron.launch.lastwords import describe
from siri_megatron.rollout.collector import Progress

log = logging.getLogger(__name__)

Work = Callable[[Progress], Coroutine[Any, Any, dict[str, Any]]]


class Conflict(SiriError):
    """A job of this name runs under another order."""


@dataclass
class Job:
    order: Any
    """What was asked for; two requests with equal orders are the same."""
    task: asyncio.Task[dict[str, Any]]
    progress: Progress = field(default_factory=Progress)

    @property
    def failed(self) -> bool:
        return self.task.done() and (self.task.cancelled() or self.task.exception() is not None)

    async def wait(self, seconds: float) -> None:
        """Until it is done, or `seconds` have passed."""
        await asyncio.wait({self.task}, timeout=seconds)

    def to_json(self) -> dict[str, Any]:
        """state, progress, stats (when done), error (when failed)."""
        state = "failed" if self.failed else "done" if self.task.done() else "running"
        record: dict[str, Any] = {"state": state, "progress": self.progress.to_json()}
        if state == "done":
            record["stats"] = self.task.result()
        if state == "failed":
            error = asyncio.CancelledError("cancelled") if self.task.cancelled() else self.task.exception()
            assert error is not None
            record["error"] = {"kind": type(error).__name__, **describe(error)}
        return record


class JobBook:
    """Jobs by name."""

    def __init__(self) -> None:
        self._jobs: dict[str, Job] = {}

    def get(self, name: str) -> Job | None:
        return self._jobs.get(name)

    def names(self) -> dict[str, str]:
        """name -> state."""
        return {name: job.to_json()["state"] for name, job in self._jobs.items()}

    def start(self, name: str, order: Any, work: Work) -> Job:
        """The running or finished job, or a new one.

        Raises:
            Conflict: it runs under another order.
        """
        job = self._jobs.get(name)
        if job is not None and job.order == order and not job.failed:
            return job
        if job is not None and not job.task.done():
            raise Conflict(f"{name} runs for {job.order}, asked for is {order}", rule="a job has one order",
                           fix="wait for it to end")
        progress = Progress()
        task = asyncio.create_task(work(progress), name=name)
        task.add_done_callback(_log_failure)
        self._jobs[name] = Job(order, task, progress)
        return self._jobs[name]

    async def cancel_all(self) -> None:
        """At shutdown."""
        tasks = [job.task for job in self._jobs.values() if not job.task.done()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def _log_failure(task: asyncio.Task[dict[str, Any]]) -> None:
    error = None if task.cancelled() else task.exception()
    if error is not None:
        log.error("%s failed: %s", task.get_name(), error, exc_info=None if isinstance(error, SiriError) else error)
