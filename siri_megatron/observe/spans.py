"""`spans/<role>.jsonl`: what a process did when. One line a step; the timeline of a report and `trace.json` read them.

A line is {"process": "learner-0", "step": 8 or null, "spans": [[name, start, seconds, {...}?], ...]}: start in seconds
since 1970, the map (requests, tokens, ...) where there is more to say. Append-only like events.jsonl: what a resumed
run did twice stands there twice.

Invariants:
- a_line_a_step: spans wait in memory for `write`, which appends them as one line; nothing is written without spans.
- busy_is_a_union: an engine is busy from the first request in flight to the last answer, however many overlap.
- no_run_ends_for_them: what the disk does not take is lost; the log says so once.
- cut_when_long: a busy engine is heard of every `SLICE_S` seconds or so, at the next answer.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from siri_megatron.observe import jsonl

log = logging.getLogger(__name__)

RECORDED_RANKS = 64
"""Learner ranks above it keep no spans: files and bytes of a large run stay few."""
SLICE_S = 30.0


class SpanLog:
    """The spans of one process.

    Args:
        path: made at the first line, with its directory.
        process: name of its lane.
        now, wall: clocks; a span's start is told by `now` and written by `wall`.
    """

    def __init__(self, path: Path, process: str, now: Callable[[], float] = time.perf_counter,
                 wall: Callable[[], float] = time.time) -> None:
        self.path, self.process, self._now = path, process, now
        self._offset = wall() - now()
        self._spans: list[list[Any]] = []
        self._losing = False

    def add(self, name: str, start: float, end: float, **more: Any) -> None:
        """Note a span, by readings of `now`."""
        span: list[Any] = [name, round(start + self._offset, 5), round(end - start, 5)]
        self._spans.append([*span, more] if more else span)

    @contextmanager
    def span(self, name: str, **more: Any) -> Iterator[None]:
        """Note and write the time inside."""
        started = self._now()
        try:
            yield
        finally:
            self.add(name, started, self._now(), **more)
            self.write(more.get("step"))

    def write(self, step: int | None = None) -> None:
        """Append the spans since the last call as one line."""
        spans, self._spans = self._spans, []
        if not spans:
            return
        try:
            self.path.parent.mkdir(exist_ok=True)
            jsonl.append(self.path, {"process": self.process, "step": step, "spans": spans})
        except OSError as error:
            if not self._losing:
                log.warning("spans are lost: %s", error)
            self._losing = True


@dataclass
class _Busy:
    since: float
    flying: int = 0
    requests: int = 0
    tokens: int = 0


class BusyLog:
    """When each engine was busy, as its client sees it; a line a stretch in `directory`/engine-N.jsonl."""

    def __init__(self, directory: Path, now: Callable[[], float] = time.perf_counter) -> None:
        self._directory, self._now = directory, now
        self._logs: dict[int, SpanLog] = {}
        self._busy: dict[int, _Busy] = {}

    def started(self, engine: int) -> None:
        """A request is on its way."""
        self._busy.setdefault(engine, _Busy(self._now())).flying += 1

    def ended(self, engine: int, tokens: int) -> None:
        """It was answered, or given up (no tokens)."""
        busy, now = self._busy[engine], self._now()
        busy.flying, busy.requests, busy.tokens = busy.flying - 1, busy.requests + 1, busy.tokens + tokens
        if busy.flying and now - busy.since < SLICE_S:
            return
        if engine not in self._logs:
            self._logs[engine] = SpanLog(self._directory / f"engine-{engine}.jsonl", f"engine-{engine}", self._now)
        self._logs[engine].add("busy", busy.since, now, requests=busy.requests, tokens=busy.tokens)
        self._logs[engine].write()
        del self._busy[engine]
        if busy.flying:
            self._busy[engine] = _Busy(now, busy.flying)


def read_spans(directory: Path) -> list[dict[str, Any]]:
    """Every whole and well-formed line of every process, in the order of file names."""
    lines = [record for path in sorted(directory.glob("*.jsonl")) for record in jsonl.read(path)]
    return [line for line in lines if isinstance(line.get("process"), str) and _is_spans(line.get("spans"))]


def _is_spans(spans: Any) -> bool:
    return isinstance(spans, list) and all(
        isinstance(span, list) and len(span) in (3, 4) and isinstance(span[0], str)
        and all(isinstance(value, (int, float)) and math.isfinite(value) for value in span[1:3]) and span[2] >= 0
        and isinstance(span[-1], (int, float, dict)) for span in spans)
