"""What /proc says of the processes below one: the oracle of "nothing is left", independent of guards and tags."""

from __future__ import annotations

import threading
from pathlib import Path

Process = tuple[int, int]  # pid and start time (clock ticks): a pid alone may be given to somebody else


def living() -> dict[Process, int]:
    """Every process that is not a zombie -> pid of its parent."""
    table = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except (FileNotFoundError, ProcessLookupError):
            continue
        if fields[0] not in "ZX":
            table[int(stat.parent.name), int(fields[19])] = int(fields[1])
    return table


def descendants(*pids: int) -> set[Process]:
    """All living processes below these."""
    table = living()
    found: set[Process] = set()
    parents = set(pids)
    while parents:
        below = {process for process, parent in table.items() if parent in parents} - found
        found |= below
        parents = {pid for pid, _ in below}
    return found


def command(pid: int) -> str:
    """The command line; empty for a process that is gone."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace").replace("\0", " ")
    except (FileNotFoundError, ProcessLookupError):
        return ""


class Watch:
    """Records who was ever seen below a process, ten times a second, also below descendants that lost their parent."""

    def __init__(self, pid: int, every_s: float = 0.1) -> None:
        self._every_s = every_s
        self._seen = frozenset(process for process in living() if process[0] == pid)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._loop, daemon=True)
        self._thread.start()

    @property
    def seen(self) -> int:
        """How many so far, the process itself included."""
        return len(self._seen)

    def left(self) -> list[int]:
        """Those seen that live."""
        return sorted(pid for pid, _ in self._seen & living().keys())

    def children(self, of: str, word: str) -> list[int]:
        """Those left with `word` in their command line whose parent has `of` in its own, as their parents were started.

        (They themselves may come in any order, for the parents load side by side. Pids begin anew when they have run
        out: the second learner may have a smaller one than the first.)
        """
        now = living()
        parents = {pid: (start, pid) for pid, start in now}
        found = [(parents[parent], pid) for (pid, start), parent in now.items()
                 if (pid, start) in self._seen and parent in parents and word in command(pid) and of in command(parent)]
        return [pid for _, pid in sorted(found)]

    def close(self) -> None:
        self._stop.set()
        self._thread.join()

    def _loop(self) -> None:
        while not self._stop.wait(self._every_s):
            self._seen |= descendants(*self.left())
