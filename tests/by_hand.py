"""An engine that a test starts with `siri engine`, for runs that are given its URL (`engines.urls`)."""

from __future__ import annotations

import signal
import subprocess
from collections.abc import Sequence
from pathlib import Path

from engine_fleet import free_port, wait_until
from process_table import descendants
from real_run import REPO, SIRI

from siri_megatron.launch import procfs
from siri_megatron.launch.fleet import healthy

START_S = 900.0
END_S = 60.0


class ByHand:
    """Started at construction; `end` it.

    Args:
        overrides: of configs/tiny.yaml.
        before: words before the command, e.g. `taskset -c 0`.
    """

    def __init__(self, place: Path, *overrides: str, before: Sequence[str] = ()) -> None:
        self.key_file, self.port, self.log = place / "key", free_port(), place / "by-hand.log"
        self.url = f"http://127.0.0.1:{self.port}"
        self._argv = [*before, str(SIRI), "engine", str(REPO / "configs" / "tiny.yaml"), *overrides,
                      "--port", str(self.port), "--key-file", str(self.key_file)]
        self.start()

    @property
    def given(self) -> tuple[str, str, str]:
        """What makes a run use it."""
        return f"engines.urls=[{self.url}]", "engines.count=1", f"engines.key_file={self.key_file}"

    def start(self) -> None:
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(self._argv, cwd=REPO, stdout=log, stderr=subprocess.STDOUT)

    def until_healthy(self) -> None:
        wait_until(lambda: self.process.poll() is not None or self.healthy(), START_S, "the engine by hand", 0.5)
        assert self.process.poll() is None, self.log.read_text()[-3000:]

    def healthy(self) -> bool:
        return self.key_file.exists() and healthy(self.url, self.key_file.read_text())

    def end(self) -> None:
        """In order, so that nothing is left in shared memory."""
        self.process.terminate()
        try:
            self.process.wait(END_S)
        except subprocess.TimeoutExpired:
            self.kill()

    def kill(self) -> None:
        """The server and what it started: vLLM's engine core outlives a server that is killed."""
        below = [pid for pid, _ in descendants(self.process.pid)]
        self.process.kill()
        self.process.wait()
        procfs.send(below, signal.SIGKILL)
