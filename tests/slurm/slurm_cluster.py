"""A private Slurm from a test: launch a run as a user does, wait for its end, look at what is left. Not a test."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from siri_megatron.launch.slurm import JobState, parse_state
from siri_megatron.observe import jsonl
from siri_megatron.paths import RunDir

REPO = Path(__file__).resolve().parents[2]
SMALL = ("budget.cycle_steps=4", "budget.cycles=1", "rollout.prompts_per_step=8", "evaluation.problems=24",
         "checkpoint.every_steps=1")
MOMENTS = ("launch", "engines_ready", "ready", "stop_asked", "node_lost", "resume", "start", "end")
TWO_NODES = ("launch.nodes=2", "push.backend=gloo", "checkpoint.timeout_s=20")


@dataclass(frozen=True)
class Launched:
    """A run that `siri launch slurm` has submitted."""

    paths: RunDir
    jobs: tuple[str, ...]
    submitted: float

    @property
    def result(self) -> dict[str, Any]:
        return dict(json.loads(self.paths.result.read_text()))

    @property
    def log(self) -> str:
        return "".join(path.read_text() for path in sorted(self.paths.job.parent.glob("*.log")))

    @property
    def steps(self) -> int:
        return len(jsonl.read(self.paths.metrics))

    def timings(self) -> str:
        """Seconds between the moments that a user waits for."""
        lines, since = [], self.submitted
        for event in jsonl.read(self.paths.events):
            if event["kind"] in MOMENTS:
                lines.append(f"{event['kind']} +{event['ts'] - since:.1f} s")
                since = event["ts"]
        return f"\n{self.paths.root.name}: submit, {', '.join(lines)}"

    def events(self, kind: str) -> list[dict[str, Any]]:
        return [event for event in jsonl.read(self.paths.events) if event["kind"] == kind]


@dataclass(frozen=True)
class Cluster:
    root: Path

    @property
    def env(self) -> dict[str, str]:
        return os.environ | {"SLURM_CONF": str(self.root / "slurm.conf"), "PYTHONPATH": str(REPO)}

    def siri(self, *arguments: str, code: int = 0) -> str:
        """Run `siri` beside the cluster; returns what it printed."""
        done = subprocess.run([sys.executable, "-m", "siri_megatron.cli", *arguments], cwd=REPO, env=self.env,
                              capture_output=True, text=True, timeout=900)
        assert done.returncode == code, done.stdout + done.stderr
        return done.stdout + done.stderr

    def launch(self, runs: Path, name: str, *overrides: str, replay: Path | None = None) -> Launched:
        """`siri launch slurm` of the tiny config."""
        submitted = time.time()
        flags = ("--replay", str(replay)) if replay else ()
        self.siri("launch", "slurm", "configs/tiny.yaml", *flags, f"name={name}", f"runs_dir={runs}", *overrides)
        paths = RunDir(runs / name)
        return Launched(paths, tuple(json.loads(paths.job.read_text())["jobs"]), submitted)

    def states(self, job: str) -> list[JobState]:
        said = self.slurm("scontrol", "show", "job", "--oneliner", job)
        return [parse_state(line) for line in said.splitlines() if line.startswith("JobId=")]

    def end(self, launched: Launched, seconds: float, job: str = "") -> list[JobState]:
        """The states of the job once it (every element of an array) has ended."""
        job = job or launched.jobs[-1]
        wait_for(lambda: all(state.ended for state in self.states(job)), seconds,
                 lambda: f"the end of {self.states(job)}:\n{launched.log[-3000:]}")
        return self.states(job)

    def slurm(self, *argv: str) -> str:
        return subprocess.run(argv, env=self.env, capture_output=True, text=True, timeout=30, check=True).stdout

    def node(self, command: str, node: str) -> None:
        """kill-node or start-node."""
        subprocess.run([str(REPO / "slurm" / "testcluster"), command, str(self.root), node], check=True, timeout=60,
                       stdout=subprocess.DEVNULL)

    def job_processes(self) -> list[str]:
        """Command lines of everything on this machine that runs for a job of this cluster."""
        needle = f"SLURM_CONF={self.root}/slurm.conf".encode()
        found = []
        for process in Path("/proc").glob("[0-9]*"):
            try:
                variables = (process / "environ").read_bytes().split(b"\0")
                if needle in variables and any(one.startswith(b"SLURM_JOB_ID=") for one in variables):
                    found.append((process / "cmdline").read_bytes().replace(b"\0", b" ").decode())
            except OSError:
                continue
        return found


def wait_for(condition: Callable[[], object], seconds: float, what: Callable[[], str] | str) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, \
            f"waited {seconds:.0f} s for {what if isinstance(what, str) else what()}"
        time.sleep(0.3)


def python(path: Path, body: str) -> Path:
    """An interpreter of a component."""
    path.write_text(f"#!/bin/sh\n{body}\n")
    path.chmod(0o755)
    return path
