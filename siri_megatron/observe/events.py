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
        must: False: a disk that takes no more costs the event only.
    """

    def __init__(self, path: Path, clock: Callable[[], float] = time.time, *, must: bool = True) -> None:
        self.path, self._clock, self._must = path, clock, must

    def write(self, kind: str, step: int | None = None, **fields: Any) -> dict[str, Any]:
        """Append an event and return its record."""
        taken = [name for name in RESERVED if name in fields]
        if taken:
            raise ValueError(f"event fields {taken} are reserved")
        record = {"ts": self._clock(), "kind": kind, "step": step, **fields}
        try:
            jsonl.append(self.path, record)
        except OSError:
            if self._must:
                raise
        return record
