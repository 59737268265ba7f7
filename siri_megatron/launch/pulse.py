"""Whether a process hangs: it writes a number that rises, and the supervisor sees when it no longer does.

    process: a thread raises pulses/ROLE ──► supervisor: `Pulses`, as often ──► silent too long: the run ends

It sees what no time-out inside of a process can: that nothing of the process runs any more (stopped, swapped out, stuck
in the kernel or in a call that never gives Python back). A wait that does not end is bounded where it stands.

Invariants of `Pulses`:
    silent_is_unchanged: a role is silent since its number was last seen to change.
    slow_to_begin: one that runs and has no number yet is silent since it was first looked for, and may be so `BEGIN`
        times as long: it imports, on many nodes at once from one file system.
    unwatched_is_not_silent: time between two looks further apart than `BLINK_S` counts for nothing, for whoever stopped
        the supervisor may have stopped the others too.
"""

from __future__ import annotations

import itertools
import threading
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

from siri_megatron.paths import RunDir

PULSE_S = 2.0
"""Between two beats."""
BLINK_S = 5.0
BEGIN = 10.0


@contextmanager
def beating(run_dir: RunDir, role: str) -> Iterator[None]:
    """Raise the number of this role as long as the block lasts."""
    over = threading.Event()
    path = run_dir.pulses / role
    path.parent.mkdir(parents=True, exist_ok=True)
    _write(path, 1)  # before an import can hold the thread up
    threading.Thread(target=_beat, args=(path, over), name="pulse", daemon=True).start()
    try:
        yield
    finally:
        over.set()


def _beat(path: Path, over: threading.Event) -> None:
    for count in itertools.count(2):
        if over.wait(PULSE_S):
            return
        _write(path, count)


def _write(path: Path, count: int) -> None:
    """In place, at a fixed width: who reads meanwhile finds a whole number, and a disk that fills takes no room back.

    A disk that takes none is no reason to end a run: somebody who needs the room will say so.
    """
    with suppress(OSError), path.open("r+b" if path.exists() else "wb", buffering=0) as file:
        file.write(b"%012d" % count)


def read_pulses(run_dir: RunDir, roles: Iterable[str]) -> dict[str, str]:
    """What each role wrote last; without those that have not begun."""
    found = {}
    for role in roles:
        with suppress(OSError):
            found[role] = (run_dir.pulses / role).read_text()
    return {role: pulse for role, pulse in found.items() if pulse}


def clear_pulses(run_dir: RunDir) -> None:
    """Forget those of an earlier launch."""
    for path in run_dir.pulses.glob("*"):
        path.unlink(missing_ok=True)


class Pulses:
    """Who is silent, and for how long. Pure: the clock is an argument."""

    def __init__(self, now: float) -> None:
        self._looked = now
        self._last: dict[str, tuple[str, float]] = {}

    def look(self, pulses: Mapping[str, str], running: Iterable[str], now: float) -> None:
        """Take in what `read_pulses` gave of those that run."""
        gap, self._looked = now - self._looked, now
        unseen = gap if gap > BLINK_S else 0.0
        for role in running:
            pulse = pulses.get(role, "")
            before, since = self._last.get(role, (pulse, now))
            self._last[role] = pulse, now if pulse != before else since + unseen

    def silent(self, limit_s: float) -> dict[str, float]:
        """Role -> seconds, of those who were silent for too long at the last look: `limit_s` if they had ever begun."""
        return {role: self._looked - since for role, (pulse, since) in self._last.items()
                if self._looked - since > (limit_s if pulse else BEGIN * limit_s)}
