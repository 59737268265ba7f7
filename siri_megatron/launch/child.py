"""A running process of the plan, behind its guard."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Protocol

from siri_megatron.launch import guard, procfs
from siri_megatron.launch.spec import ProcessSpec, child_environment


class Running(Protocol):
    """A started process of the plan, on this node or another."""

    @property
    def spec(self) -> ProcessSpec: ...
    @property
    def role(self) -> str: ...
    @property
    def pid(self) -> int: ...
    def poll(self) -> int | None: ...
    def stop(self) -> None: ...
    def kill(self) -> None: ...
    def log_tail(self, limit: int = 200_000) -> str: ...


class Child:
    """Starts the process at construction. Its output is appended to `spec.log`; the guard speaks there too."""

    def __init__(self, spec: ProcessSpec, *, tag: str, hold: int, grace_s: float) -> None:
        self.spec, self.grace_s = spec, grace_s
        spec.log.parent.mkdir(parents=True, exist_ok=True)
        self.log_start = spec.log.stat().st_size if spec.log.exists() else 0
        with spec.log.open("ab") as log:
            # The guard has a session of its own: a Ctrl-C at the terminal reaches the supervisor only, which decides.
            self._guard = subprocess.Popen(
                _guard_argv(spec, tag, hold, grace_s), env=child_environment(os.environ, spec.env),
                stdin=subprocess.PIPE, stdout=log, stderr=subprocess.STDOUT, start_new_session=True, pass_fds=(hold,))

    @property
    def role(self) -> str:
        return self.spec.role

    @property
    def guard_pid(self) -> int:
        return self._guard.pid

    @property
    def pid(self) -> int:
        """The process itself; 0 while the guard has not started it or after its end."""
        return next((pid for pid in procfs.descendants(self._guard.pid)), 0)

    def poll(self) -> int | None:
        """None while it runs, else its exit status: 128 + n for signal n, negative if the guard itself was killed."""
        return self._guard.poll()

    def stop(self) -> None:
        """SIGTERM to the whole tree, SIGKILL after the grace time."""
        self._order(guard.STOP)

    def kill(self) -> None:
        """SIGKILL to the whole tree."""
        self._order(guard.KILL)

    def _order(self, order: bytes) -> None:
        if self._guard.poll() is None and self._guard.stdin:
            try:
                os.write(self._guard.stdin.fileno(), order)
            except BrokenPipeError:
                return  # it ends by itself at this moment

    def log_tail(self, limit: int = 200_000) -> str:
        """The end of what this process has written since it was started."""
        return read_tail(self.spec.log, self.log_start, limit)


def _guard_argv(spec: ProcessSpec, tag: str, hold: int, grace_s: float) -> list[str]:
    cores = ["--cores", ",".join(map(str, spec.cores))] if spec.cores else []
    return [sys.executable, "-m", "siri_megatron.launch.guard", "--tag", tag, "--hold", str(hold),
            "--grace", str(grace_s), *cores, "--", *spec.argv]


def read_tail(path: Path, start: int, limit: int) -> str:
    with path.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(start, size - limit))
        return file.read().decode(errors="replace")
