"""One supervisor a run directory: an flock that also the guards hold, so it is free only when the last process is gone.

A new supervisor therefore never writes into a directory in which the killed run's learners are still dying.
"""

from __future__ import annotations

import fcntl
import os
import socket
import time
from pathlib import Path

from siri_megatron.errors import RunFailed
from siri_megatron.files import on_disk
from siri_megatron.paths import RunDir


class RunLock:
    """Context manager; `descriptor` is handed to the guards, which keep it open and never pass it on.

    Args:
        path: another file than the run's own: that of a further node, whose agent ends with the head and is waited for.

    Raises:
        RunFailed: the lock is still held after `wait_s` seconds (names the holder), or the disk takes no more.
    """

    def __init__(self, run_dir: RunDir, wait_s: float = 10.0, *, path: Path | None = None) -> None:
        self.run_dir, self.wait_s = run_dir, wait_s
        self.path, self._patient = path or run_dir.lock, path is not None
        self.descriptor = -1

    def __enter__(self) -> RunLock:
        with on_disk(self.path):
            self.path.parent.mkdir(exist_ok=True)
            self.descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o644)
        deadline = time.monotonic() + self.wait_s
        while not self._try():
            pid, _, host = os.pread(self.descriptor, 128, 0).decode().strip().partition(" on ")
            elsewhere = host not in ("", socket.gethostname())
            alive = not elsewhere and pid.isdigit() and os.path.exists(f"/proc/{pid}")
            # A living supervisor will not let go; the guards of a dead one do within seconds.
            if (alive and not self._patient) or time.monotonic() > deadline:
                os.close(self.descriptor)
                raise _locked(self.run_dir, pid or "unknown", f"is on {host}" if elsewhere else "is running" if alive
                              else "is gone, but processes of its run still live")
            time.sleep(0.1)
        try:
            with on_disk(self.path):
                os.ftruncate(self.descriptor, 0)
                os.pwrite(self.descriptor, f"{os.getpid()} on {socket.gethostname()}\n".encode(), 0)
        except RunFailed:
            os.close(self.descriptor)
            raise
        return self

    def _try(self) -> bool:
        try:
            fcntl.flock(self.descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True

    def __exit__(self, *_: object) -> None:
        os.close(self.descriptor)  # not unlinked: another supervisor may wait on this very file


def _locked(run_dir: RunDir, pid: str, state: str) -> RunFailed:
    return RunFailed(f"{run_dir.root} is locked: supervisor pid {pid} {state}",
                     rule="one supervisor a run directory",
                     fix="wait for that run to end or stop it (kill -TERM PID), or give this one another name=...")
