"""What the live display knows: fed by metric records, events and status strings. Pure.

Invariants:
- latest_wins: a record replaces one of the same step or later ones (a resumed run goes back), never doubles it.
- eta_from_recent_steps: the time left is the steps left times the mean of the last steps' seconds.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from siri_megatron.observe.render import duration, number, percent, rate

ETA_STEPS = 24
"""Steps that the estimate looks back: about a cycle of the shipped configs, since short caps make short steps."""
EVENTS_KEPT = 4


@dataclass
class ProgressState:
    """The state of a display; `name` and the schedule's extent are fixed at the start."""

    name: str
    steps: int
    cycles: int | None
    """None: not known before the run (stages, closed loop)."""
    l_min: int
    l_max: int
    status: str = ""
    records: list[dict[str, Any]] = field(default_factory=list)
    events: list[dict[str, Any]] = field(default_factory=list)

    def record(self, record: Mapping[str, Any]) -> None:
        """Take in the metrics of a step."""
        while self.records and self.records[-1]["step"] >= record["step"]:
            self.records.pop()
        self.records.append(dict(record))

    def event(self, event: Mapping[str, Any]) -> None:
        """Take in an event; only the last few are kept."""
        self.events = [*self.events, dict(event)][-EVENTS_KEPT:]

    @property
    def last(self) -> dict[str, Any]:
        return self.records[-1] if self.records else {}

    @property
    def done(self) -> int:
        """Steps consumed."""
        return self.last.get("step", -1) + 1

    @property
    def eta_s(self) -> float | None:
        """Seconds left, None before the first step."""
        recent = [record["step_s"] for record in self.records[-ETA_STEPS:] if record.get("step_s")]
        return (self.steps - self.done) * sum(recent) / len(recent) if recent else None

    def series(self, key: str) -> list[float | None]:
        return [record.get(key) for record in self.records]

    def headline(self) -> str:
        """Phase, cycle, cap."""
        if not self.last:
            return f"cap {self.l_max} → {self.l_min}" + (f", {self.cycles} cycles" if self.cycles else "")
        arrow = "▼" if self.last["phase"] == "compression" else "▲"
        of = f"/{self.cycles}" if self.cycles else ""
        return (f"{self.last['phase']} {arrow}  cycle {self.last['cycle'] + 1}{of}  "
                f"cap {self.last['cap']} [{self.l_min}..{self.l_max}]")

    def figures(self) -> list[tuple[str, str]]:
        """(name, value) of what a person watches."""
        last = self.last
        return [("accuracy", percent(last.get("accuracy"))), ("truncated", percent(last.get("truncated"))),
                ("tokens", number(last.get("mean_tokens"))),
                ("generation", rate(last.get("generation_tokens_per_s"))),
                ("training", rate(last.get("training_tokens_per_s"))), ("push", number(last.get("push_s"), 2, " s")),
                ("step", number(last.get("step_s"), 1, " s")), ("ETA", duration(self.eta_s))]

    def line(self) -> str:
        """The last step in one plain line."""
        figures = "  ".join(f"{name} {value}" for name, value in self.figures())
        return f"step {self.done}/{self.steps}  {self.headline()}  {figures}"


def event_line(event: Mapping[str, Any]) -> str:
    """An event as a line for people: its message, or its fields."""
    if event.get("message"):
        return f"{event['kind']}: {event['message']}"
    step = "" if event.get("step") is None else f" at step {event['step']}"
    fields = [f"{key} {_short(value)}" for key, value in event.items()
              if key not in ("ts", "kind", "step") and value is not None]
    return f"{event['kind']}{step}" + (": " + ", ".join(fields) if fields else "")


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
