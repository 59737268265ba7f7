"""What a run may not leave behind: processes, ports it listened on, files in shared memory, Unix sockets."""

from __future__ import annotations

import os
import re
import time
from contextlib import suppress
from pathlib import Path

from process_table import Watch, command

from siri_megatron.paths import RunDir

LISTENING = "0A"
SHARED = re.compile(r"(\d+) +/dev/shm/")


class Leftovers:
    """What a run holds, noted while it lives (`note`), looked for afterwards (`found`)."""

    def __init__(self, paths: RunDir, watch: Watch) -> None:
        self._watch = watch
        self._listening: set[tuple[int, str]] = set()
        self._shared = {*paths.shared_weights}

    def note(self) -> None:
        """Look at the run as it is now. What it opens later is found with the process that has it open."""
        pids = self._watch.left()
        held = {link for pid in pids for link in links(pid)}
        self._listening |= {(port, inode) for port, inode in listening() if f"socket:[{inode}]" in held}
        self._shared |= {file for pid in pids for file in shared_files(pid)}
        self._shared |= {path for inode, path in unix_sockets() if f"socket:[{inode}]" in held}

    def processes(self) -> list[int]:
        return self._watch.left()

    def found(self) -> list[str]:
        """Processes and ports that are still there. A port that somebody took since then has another socket."""
        return [*(f"process {pid} {command(pid)}" for pid in self.processes()),
                *(f"port {port}" for port, _ in sorted(self._listening & listening()))]

    def check_gone(self, within_s: float, after: object) -> None:
        """Of processes and ports. A process is a zombie as soon as its first thread is gone, and until the last one is
        the port stays open; and one that was forked at the moment of a kill is seen only afterwards.

        Raises:
            AssertionError: what is still there then.
        """
        end = time.monotonic() + within_s
        while (found := self.found()) and time.monotonic() < end:
            time.sleep(0.1)
        assert not found, f"left after {after}: {found}"

    def shared(self) -> list[Path]:
        """Files in shared memory, and Unix sockets, that are still there."""
        return [path for path in sorted(self._shared) if path.exists()]


def listening() -> set[tuple[int, str]]:
    """Port and inode of every listening socket of this machine (proc_net_tcp(5)): no two sockets have one inode."""
    rows = [line.split() for table in Path("/proc/net").glob("tcp*") for line in table.read_text().splitlines()]
    return {(int(row[1].rpartition(":")[2], 16), row[9]) for row in rows if row[3] == LISTENING}


def unix_sockets() -> set[tuple[str, Path]]:
    """Inode and path of every Unix socket of this machine that is bound to a path (proc_net_unix(5))."""
    rows = [line.split() for line in Path("/proc/net/unix").read_text().splitlines()]
    return {(row[6], Path(row[7])) for row in rows if row[7:] and row[7].startswith("/")}


def links(pid: int) -> set[str]:
    """What a process has open, as /proc names it; nothing if it is gone."""
    found = set()
    with suppress(OSError):
        for entry in os.scandir(f"/proc/{pid}/fd"):
            with suppress(OSError):
                found.add(os.readlink(entry.path))
    return found


def shared_files(pid: int) -> set[Path]:
    """What a process has mapped of /dev/shm, by inode: a semaphore is mapped before it has its name."""
    try:
        held = {int(inode) for inode in SHARED.findall(Path(f"/proc/{pid}/maps").read_text())}
    except OSError:
        return set()
    return {Path(entry.path) for entry in os.scandir("/dev/shm") if entry.inode() in held}
