"""What every launcher starts, whatever it is: the command of the supervisor, its environment, its runs. Pure.

Invariants:

- one_command: all renderers start `Job.argv` under `Job.env`; a run on several nodes gets `--head` and `--node` behind
  it, a run of a sweep its overrides.
- resumes: a job always goes on where the run stands, so starting it again is safe.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from siri_megatron.config import RunConfig
from siri_megatron.config.launch import variants

FIRST_PORT, PORTS = 20000, 10000
"""Ports of heads: FIRST_PORT + job id % PORTS, so that jobs which share a node do not meet."""


@dataclass(frozen=True)
class Place:
    """Where a job is started from.

    Attributes:
        directory: working directory (absolute): relative paths of the config count from here.
        python: interpreter of the supervisor.
    """

    directory: Path
    python: str


@dataclass(frozen=True)
class JobRun:
    """One run of a job: its directory, and what it overrides in the config (several, in a sweep)."""

    root: Path
    overrides: tuple[str, ...] = ()


@dataclass(frozen=True)
class Job:
    """A launch: one command on `nodes` nodes, for each of `runs`. replay: train from this run's ledger, no engines."""

    config: RunConfig
    root: Path
    place: Place
    replay: Path | None = None

    @property
    def nodes(self) -> int:
        return self.config.launch.nodes

    @property
    def files(self) -> Path:
        """Where the launch keeps its script, its resolved config and its job id."""
        return self.root / "launch"

    @property
    def config_file(self) -> Path:
        return self.files / "config.yaml"

    @property
    def argv(self) -> tuple[str, ...]:
        """The supervisor's command on every node, without its place."""
        several = ("--nodes", str(self.nodes)) if self.nodes > 1 else ()
        replay = ("--replay", str(self.replay)) if self.replay else ()
        return (self.config.launch.python or self.place.python, "-m", "siri_megatron.cli", "train",
                str(self.config_file), "--resume", *replay, *several)

    @property
    def env(self) -> Mapping[str, str]:
        """Variables to set over those of the submitting shell."""
        interface = self.config.launch.interface
        own = {"NCCL_SOCKET_IFNAME": interface} if interface else {}
        return {"PYTHONUNBUFFERED": "1"} | own | self.config.launch.env

    @property
    def runs(self) -> tuple[JobRun, ...]:
        return tuple(JobRun(self._root_of(overrides), overrides)
                     for overrides in variants(self.config.launch.slurm, self.config.name))

    def _root_of(self, overrides: tuple[str, ...]) -> Path:
        names = [text.removeprefix("name=") for text in overrides if text.startswith("name=")]
        return self.root.parent / names[0] if names else self.root


def make_job(config: RunConfig, place: Place, replay: Path | None = None) -> Job:
    """The job of a config."""
    return Job(config, (place.directory / config.run_dir).absolute(), place, replay)
