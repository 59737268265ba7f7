"""Where the time goes: seconds of each stage of a step, and the table of a whole run.

Invariants of the clock:
- seconds_add_up: the stages (with `other`) add up to `step`, exactly the time since the last `take`.
- innermost_counts: while stages are nested, time counts for the innermost one only.
- moving_keeps_the_sum: `move` shifts seconds between stages and never makes one negative.
- heard_as_it_counts: the pieces that a listener hears are those that count for a stage, in order, and never overlap.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from rich import box
from rich.console import Group
from rich.table import Table
from rich.text import Text

STAGES = ("generation", "verification", "planning", "training", "push", "commit", "evaluation", "export", "other")
APART = ("evaluation", "export")
"""Stages of phase ends, not of a plain step."""


class StageClock:
    """Collects seconds per stage.

    Args:
        now: monotonic clock, seconds.
        heard: called with (stage, start, end) of every piece of time, but for `other`; readings of `now`.
    """

    def __init__(self, now: Callable[[], float] = time.perf_counter,
                 heard: Callable[[str, float, float], None] | None = None) -> None:
        self._now, self._heard = now, heard
        self._mark = now()
        self._open: list[str] = ["other"]
        self._seconds = dict.fromkeys(STAGES, 0.0)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Count the time inside for a stage."""
        if name not in STAGES:
            raise ValueError(f"{name!r} is not a stage; stages are {STAGES}")
        self._settle()
        self._open.append(name)
        try:
            yield
        finally:
            self._settle()
            self._open.pop()

    def move(self, source: str, target: str, seconds: float) -> None:
        """Count seconds of one stage for another: for work that only the collector could measure."""
        self._settle()
        seconds = max(0.0, min(seconds, self._seconds[source]))
        self._seconds[source] -= seconds
        self._seconds[target] += seconds

    def pop(self, name: str) -> float:
        """Seconds of one stage since the last take or pop of it; the others keep theirs."""
        self._settle()
        seconds, self._seconds[name] = self._seconds[name], 0.0
        return seconds

    def take(self) -> dict[str, float]:
        """Seconds of every stage since the last take, and their sum as `step`; starts over."""
        self._settle()
        taken, self._seconds = self._seconds, dict.fromkeys(STAGES, 0.0)
        return {**taken, "step": sum(taken.values())}

    def _settle(self) -> None:
        now, stage = self._now(), self._open[-1]
        self._seconds[stage] += now - self._mark
        if self._heard and stage != "other" and now > self._mark:
            self._heard(stage, self._mark, now)
        self._mark = now


@dataclass(frozen=True)
class StageRow:
    """One line of the table of a run."""

    name: str
    seconds: float
    share: float
    """Of the whole run, start-up included."""
    tokens_per_s: float | None


@dataclass(frozen=True)
class StageReport:
    """Where a run spent its time."""

    rows: tuple[StageRow, ...]
    total_s: float
    outside: float
    """Share of the time after start-up that was neither generation nor training."""
    outside_plain_steps: float
    """The same without evaluation and export: what a plain step loses."""


def stage_report(records: Sequence[Mapping[str, Any]], events: Sequence[Mapping[str, Any]] = (),
                 startup_s: float = 0.0) -> StageReport:
    """Add up a run.

    Args:
        records: metric records, with `<stage>_s` each.
        events: events; those whose kind is a stage count with their `seconds` (a commit happens between records).
        startup_s: seconds until the first step could begin.
    """
    seconds = {name: _total(records, f"{name}_s") for name in STAGES}
    for event in events:
        if event["kind"] in seconds:
            seconds[event["kind"]] += event.get("seconds") or 0.0
    sampling = "sampling_s" if any("sampling_s" in record for record in records) else "generation_s"
    speeds = {"generation": _speed(records, "tokens", sampling, fresh=True),
              "training": _speed(records, "train_tokens", "training_s")}
    total = startup_s + sum(seconds.values())
    rows = [StageRow(name, spent, spent / total if total else 0.0, speeds.get(name))
            for name, spent in {"start-up": startup_s, **seconds}.items()]
    plain_steps = {name: spent for name, spent in seconds.items() if name not in APART}
    return StageReport(tuple(rows), total, _outside(seconds), _outside(plain_steps))


def stage_table(report: StageReport) -> Group:
    """The report for people."""
    table = Table(title="Where the time went", title_justify="left", box=box.SIMPLE_HEAD)
    for name in ("stage", "seconds", "share", "tokens/s"):
        table.add_column(name, justify="left" if name == "stage" else "right")
    for row in report.rows:
        speed = "" if row.tokens_per_s is None else f"{row.tokens_per_s:,.0f}"
        table.add_row(row.name, f"{row.seconds:.1f}", f"{row.share:.1%}", speed)
    table.add_section()
    table.add_row("total", f"{report.total_s:.1f}", "", "")
    return Group(table, Text(caption(report)))


def caption(report: StageReport) -> str:
    return (f"outside generation and training: {report.outside:.1%} of the time after start-up, "
            f"{report.outside_plain_steps:.1%} without evaluation and export")


def _outside(seconds: Mapping[str, float]) -> float:
    total = sum(seconds.values())
    return 1 - (seconds["generation"] + seconds["training"]) / total if total else 0.0


def _total(records: Sequence[Mapping[str, Any]], key: str) -> float:
    return sum(record.get(key) or 0.0 for record in records)


def _speed(records: Sequence[Mapping[str, Any]], tokens: str, seconds: str, *, fresh: bool = False) -> float | None:
    """Tokens a second; `fresh`: only over steps whose rollouts were really sampled."""
    counted = [record for record in records if not (fresh and record.get("reused"))]
    spent = _total(counted, seconds)
    return _total(counted, tokens) / spent if spent else None
