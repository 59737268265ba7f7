"""`events.jsonl`: what happened, when. Append-only, never cut: a resumed run keeps the story of its interruptions.

A record is {"ts": seconds since 1970, "kind": "commit", "step": 8 or null, ...fields}. Kinds that are a stage's name
(`commit`, `export`, `evaluation`, ...) carry `seconds`; `message` is a sentence for people.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from siri_megatron.observe import jsonl

RESERVED = ("ts", "kind", "step")


class EventLog:
    """Writes events; several processes may hold one on the same file.

    Args:
        lost: told of what the disk says when it takes no more, which then costs the event only; None: it is raised.
    """

    def __init__(self, path: Path, clock: Callable[[], float] = time.time, *,
                 lost: Callable[[OSError], None] | None = None) -> None:
        self.path, self._clock, self._lost = path, clock, lost

    def write(self, kind: str, step: int | None = None, **fields: Any) -> dict[str, Any]:
        """Append an event and return its record."""
        taken = [name for name in RESERVED if name in fields]
        if taken:
            raise ValueError(f"event fields {taken} are reserved")
        record = {"ts": self._clock(), "kind": kind, "step": step, **fields}
        try:
            jsonl.append(self.path, record)
        except OSError as error:
            if self._lost is None:
                raise
            self._lost(error)
        return record
