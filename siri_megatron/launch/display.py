"""What the supervisor tells a person while a run goes on; `observe/progress.py` implements it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol


class Display(Protocol):
    def status(self, text: str) -> None:
        """What is being waited for, e.g. `engines 1/2 healthy, 21 s`."""

    def record(self, record: Mapping[str, Any]) -> None:
        """A line of metrics.jsonl."""

    def event(self, event: Mapping[str, Any]) -> None:
        """A line of events.jsonl."""

    def close(self) -> None:
        """The run has ended; leave the terminal as it was."""
