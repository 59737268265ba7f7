"""Where everything lies in a run directory. One place, no I/O."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class RunDir:
    """The run directory `runs/NAME` and the names inside it (docs/operations.md describes each)."""

    root: Path

    @property
    def config(self) -> Path:
        return self.root / "config.yaml"

    @property
    def key(self) -> Path:
        """The run's secret, mode 0600: every HTTP route of engines and collector asks for it."""
        return self.root / ".key"

    @property
    def fleet(self) -> Path:
        return self.root / "fleet.json"

    @property
    def pushed(self) -> Path:
        """Which engines have the newest weights, written by whoever pushes (atomic); gone after a push that failed."""
        return self.root / "pushed.json"

    @property
    def accused(self) -> Path:
        """Engines that hang, by whoever waited for them: `accused/INDEX.INCARNATION.json`; the supervisor ends them."""
        return self.root / "accused"

    @property
    def pulses(self) -> Path:
        """One file a process, `pulses/ROLE`: a number that rises as long as the process runs."""
        return self.root / "pulses"

    @property
    def rendezvous(self) -> Path:
        """Address of the learners' control store, published by rank 0 (atomic)."""
        return self.root / "rendezvous.json"

    @property
    def collector(self) -> Path:
        """Address of the collector, published by it once it serves (atomic)."""
        return self.root / "collector.json"

    @property
    def metrics(self) -> Path:
        return self.root / "metrics.jsonl"

    @property
    def events(self) -> Path:
        return self.root / "events.jsonl"

    @property
    def spans(self) -> Path:
        """What each process did when: `spans/<role>.jsonl`."""
        return self.root / "spans"

    @property
    def environment(self) -> Path:
        """Versions and machine of the newest launch."""
        return self.root / "environment.json"

    @property
    def report(self) -> Path:
        return self.root / "report.html"

    @property
    def trace(self) -> Path:
        """Chrome-trace timeline."""
        return self.root / "trace.json"

    @property
    def result(self) -> Path:
        return self.root / "result.json"

    @property
    def stop(self) -> Path:
        """Flag file: somebody asked the learners to commit at the next step boundary and to end."""
        return self.root / "stop.json"

    @property
    def interrupt(self) -> Path:
        """Flag file: the scheduler gave notice. The job's script makes it, the supervisor then asks for a stop."""
        return self.root / "interrupt"

    @property
    def probe(self) -> Path:
        """Written by the head of a run on several nodes, read by the others: do all see one directory?"""
        return self.root / "nodes" / "probe.json"

    def node(self, index: int) -> Path:
        """What a further node says of itself, written by it."""
        return self.root / "nodes" / f"{index}.json"

    def node_lock(self, index: int) -> Path:
        """Held (flock) while any process of a further node lives."""
        return self.root / "nodes" / f".lock-{index}"

    @property
    def job(self) -> Path:
        """The job that was submitted for this run: `launch/job.json`, beside its script and resolved config."""
        return self.root / "launch" / "job.json"

    @property
    def resubmitted(self) -> Path:
        """What sbatch said to jobs of this run that submitted themselves again, where requeues are forbidden."""
        return self.root / "launch" / "resubmitted"

    @property
    def lock(self) -> Path:
        """Held (flock) while any process of the run lives; names the supervisor's pid and host."""
        return self.root / ".lock"

    @property
    def tags(self) -> Path:
        return self.root / "tags.json"

    @property
    def ledger(self) -> Path:
        return self.root / "ledger"

    @property
    def evaluations(self) -> Path:
        """One JSON per evaluation: `evaluations/<tag>.json`."""
        return self.root / "evaluations"

    @property
    def checkpoints(self) -> Path:
        return self.root / "checkpoints"

    @property
    def export(self) -> Path:
        return self.root / "export"

    @property
    def logs(self) -> Path:
        return self.root / "logs"

    @property
    def failures(self) -> Path:
        """Structured last words of a failing process: `failures/<role>.json`."""
        return self.root / "failures"

    @property
    def tensorboard(self) -> Path:
        return self.root / "tensorboard"

    @property
    def shared_weights(self) -> tuple[Path, Path]:
        """Weights on their way to the engines, in shared memory: one bucket is read while the other is written.

        Runs of one name in different places differ.
        """
        place = hashlib.sha256(str(self.root.absolute()).encode()).hexdigest()[:12]
        first = Path("/dev/shm") / f"siri-{self.root.name}-{place}.weights"
        return first, first.with_suffix(".weights2")

    def shared(self, node: int = 0) -> Path:
        """Names of shared memory that a node's processes of the present launch hold (`launch/shared_memory.py`)."""
        return self.root / "nodes" / f"shared-{node}.json" if node else self.root / "shared.json"

    def checkpoint(self, step: int) -> Path:
        return self.checkpoints / f"step-{step:06d}"

    def ledger_step(self, step: int) -> Path:
        return self.ledger / f"step-{step:06d}"
