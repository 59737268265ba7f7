"""What the supervisor tells a person while a run goes on; `observe/progress.py` implements it."""

from __future__ import annotations

from typing import Any, Protocol


class Display(Protocol):
    def status(self, text: str) -> None:
        """What is being waited for, e.g. `engines 1/2 healthy, 21 s`."""

    def record(self, record: dict[str, Any]) -> None:
        """A line of metrics.jsonl."""

    def event(self, event: dict[str, Any]) -> None:
        """A line of events.jsonl."""

    def close(self) -> None:
        """The run has ended; leave the terminal as it was."""


class SilentDisplay:
    """Shows nothing (tests, and callers that read the files themselves)."""

    def status(self, text: str) -> None: ...

    def record(self, record: dict[str, Any]) -> None: ...

    def event(self, event: dict[str, Any]) -> None: ...

    def close(self) -> None: ...
