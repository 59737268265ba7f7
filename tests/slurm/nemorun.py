"""nemo-run's command line beside a cluster, from the environment without torch (`make setup-launch`). Not a test."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from slurm_cluster import REPO, Cluster

LAUNCHER = REPO / ".venv-launch" / "bin"


@dataclass(frozen=True)
class NemoRun:
    """home: where nemo-run keeps its experiments. path: what stands before the rest of PATH."""

    cluster: Cluster
    home: Path
    path: str = ""
    env: dict[str, str] = field(default_factory=dict)

    def start(self, experiment: str, *arguments: str) -> subprocess.Popen[str]:
        return self._start("siri", experiment, "--yes", *arguments)

    def run(self, experiment: str, *arguments: str, code: int = 0, seconds: float = 900) -> str:
        """Run an experiment to its end; returns what was printed."""
        return told(self.start(experiment, *arguments), code, seconds)

    def ask(self, *arguments: str) -> str:
        """`nemorun experiment ...`."""
        return told(self._start("experiment", *arguments))

    def newest(self, title: str) -> str:
        """Id of the newest experiment of a title."""
        return sorted(path.name for path in (self.home / "experiments" / title).iterdir())[-1]

    def living(self) -> list[str]:
        """Command lines of every process that was started below one of these."""
        needle, found = f"NEMORUN_HOME={self.home}".encode(), []
        for process in Path("/proc").glob("[0-9]*"):
            try:
                if needle in (process / "environ").read_bytes().split(b"\0"):
                    found.append((process / "cmdline").read_bytes().replace(b"\0", b" ").decode())
            except OSError:
                continue
        return found

    def _start(self, *arguments: str) -> subprocess.Popen[str]:
        environment = self.cluster.env | self.env | {
            "NEMORUN_HOME": str(self.home), "COLUMNS": "200",
            "PATH": f"{self.path}{os.environ['PATH']}"}
        return subprocess.Popen([str(LAUNCHER / "nemorun"), *arguments], cwd=REPO, env=environment, text=True,
                                stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True)


def told(process: subprocess.Popen[str], code: int = 0, seconds: float = 900) -> str:
    """What it prints until its end, which has this exit status; it is ended if that takes longer."""
    try:
        out, _ = process.communicate(timeout=seconds)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGTERM)
            time.sleep(1)
            process.kill()
    assert process.returncode == code, out
    return out


def options(runs: Path, name: str, overrides: Sequence[str]) -> list[str]:
    """`key=value` overrides of tiny.yaml, in nemo-run's syntax."""
    return ["config=tiny", f"config.name={name}", f"config.runs_dir={runs}",
            *(f"config.{override}" for override in overrides)]
