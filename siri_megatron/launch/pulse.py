"""Whether a process hangs: it writes a number that rises, and the supervisor sees when it no longer does.

    process: a thread raises pulses/ROLE ──► supervisor: `Pulses`, as often ──► silent too long: the run ends

It sees what no time-out inside of a process can: that nothing of the process runs any more (stopped, swapped out, stuck
in the kernel or in a call that never gives Python back). A wait that does not end is bounded where it stands.

Invariants of `Pulses`:
    silent_is_unchanged: a role is silent since its number was last seen to change; before its first one it is not.
    unwatched_is_not_silent: time between two looks further apart than `BLINK_S` counts for nothing, for whoever stopped
        the supervisor may have stopped the others too.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager

from siri_megatron.paths import RunDir

PULSE_S = 2.0
"""Between two beats."""
BLINK_S = 5.0


@contextmanager
def beating(run_dir: RunDir, role: str) -> Iterator[None]:
    """Raise the number of this role as long as the block lasts."""
    over = threading.Event()
    run_dir.pulses.mkdir(parents=True, exist_ok=True)
    threading.Thread(target=_beat, args=(run_dir, role, over), name="pulse", daemon=True).start()
    try:
        yield
    finally:
        over.set()


def _beat(run_dir: RunDir, role: str, over: threading.Event) -> None:
    path, count = run_dir.pulses / role, 0
    while not over.wait(PULSE_S):
        count += 1
        try:
            path.write_text(str(count))
        except OSError:
            continue  # a full disk is no reason to end a run: somebody who needs the room will say so


def read_pulses(run_dir: RunDir, roles: Iterable[str]) -> dict[str, str]:
    """What each role wrote last; without those that have not begun."""
    found = {}
    for role in roles:
        try:
            found[role] = (run_dir.pulses / role).read_text()
        except OSError:
            continue
    return found


def clear_pulses(run_dir: RunDir) -> None:
    """Forget those of an earlier launch."""
    for path in run_dir.pulses.glob("*"):
        path.unlink(missing_ok=True)


class Pulses:
    """Who is silent, and for how long. Pure: the clock is an argument."""

    def __init__(self, now: float) -> None:
        self._looked = now
        self._last: dict[str, tuple[str, float]] = {}

    def look(self, pulses: Mapping[str, str], now: float) -> None:
        """Take in what `read_pulses` gave."""
        gap, self._looked = now - self._looked, now
        unseen = gap if gap > BLINK_S else 0.0
        for role, pulse in pulses.items():
            before, since = self._last.get(role, ("", now))
            self._last[role] = pulse, now if pulse != before else since + unseen

    def silent(self, limit_s: float) -> dict[str, float]:
        """Role -> seconds, of those who were silent for longer than `limit_s` at the last look."""
        return {role: self._looked - since for role, (_, since) in self._last.items()
                if self._looked - since > limit_s}
