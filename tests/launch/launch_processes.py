"""Starting processes under a mark in their environment, and finding every process that carries it.

The oracle of "nothing is left": independent of guards, groups, sessions and parents.
"""

from __future__ import annotations

import os
import signal
import subprocess
import time
import uuid
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from siri_megatron.launch import procfs

MARK = "SIRI_TEST_MARK"


class Marked:
    """Processes of one test. `living()` lists all that carry the mark, zombies left out."""

    def __init__(self) -> None:
        self.value = uuid.uuid4().hex

    def start(self, *argv: str, **options: object) -> subprocess.Popen[str]:
        environment = os.environ | {MARK: self.value} | options.pop("env", {})  # type: ignore[operator]
        return subprocess.Popen(argv, env=environment, text=True, stdout=subprocess.PIPE,  # type: ignore[call-overload]
                                stderr=subprocess.PIPE, start_new_session=True, **options)

    def living(self) -> list[int]:
        needle = f"{MARK}={self.value}".encode()
        return [pid for pid in map(int, filter(str.isdigit, os.listdir("/proc"))) if needle in _environment(pid)]

    def named(self, word: str) -> list[int]:
        """Living processes (not their guards) whose command line has `word`."""
        words = {pid: command(pid) for pid in self.living()}
        return [pid for pid, line in words.items() if word in line and "siri_megatron.launch.guard" not in line]

    def kill(self) -> None:
        """All at once: none does anything more when it sees another one's end."""
        living = self.living()
        for number in (signal.SIGSTOP, signal.SIGKILL):
            procfs.send(living, number)


def command(pid: int) -> list[str]:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace").split("\0")
    except (FileNotFoundError, ProcessLookupError):
        return []


def _environment(pid: int) -> list[bytes]:
    try:
        return Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")  # empty for zombies
    except (FileNotFoundError, ProcessLookupError, PermissionError):
        return []


def fill(place: Path) -> Path:
    """Take all that is left of a small disk."""
    taken = place / "taken"
    with suppress(OSError), taken.open("wb", buffering=0) as file:
        while True:
            file.write(bytes(4096))
    return taken


def wait_for(condition: Callable[[], object], what: str, seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"waited {seconds:.0f} s for {what}"
        time.sleep(0.05)
