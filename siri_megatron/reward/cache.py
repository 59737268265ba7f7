"""Each pair of reference and answer is judged once: the samples of a group often say the same.

Invariants:
    one_judgement_a_pair: while a pair is known or being judged, it is not judged again.
    bounded: at most `size` pairs are known; the one that was asked for longest ago is forgotten first.
    failures_are_not_kept: a pair without verdict (NaN) is judged again when it is asked for again.
    cancelling_one_harms_none: who stops waiting does not end the judgement that others wait for.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Coroutine, Hashable
from typing import Any


class SharedVerdicts:
    """Verdicts by pair, newest last."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._known: dict[Hashable, asyncio.Task[float]] = {}

    async def get(self, pair: Hashable, judge: Callable[[], Coroutine[Any, Any, float]]) -> float:
        """The verdict of a pair; `judge` is awaited if it is not known. Raises what `judge` raises."""
        task = self._known.pop(pair, None)
        if task is None:
            task = asyncio.create_task(judge())
            task.add_done_callback(lambda done: self._forget_failure(pair, done))
        self._known[pair] = task
        if len(self._known) > self._size:
            del self._known[next(iter(self._known))]
        return await asyncio.shield(task)

    def _forget_failure(self, pair: Hashable, task: asyncio.Task[float]) -> None:
        if (task.cancelled() or task.exception() or math.isnan(task.result())) and self._known.get(pair) is task:
            del self._known[pair]
