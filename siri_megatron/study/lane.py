"""One lane of a study: a core, an engine that stays warm from run to run, and one job at a time. Blocking.

A run generates, trains and generates again, so engine and learner of one synchronous run take turns on their core.
Whatever a lane starts is behind a guard: it ends with the study, be it by SIGKILL.
"""

from __future__ import annotations

import secrets
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from math import nan
from pathlib import Path

from siri_megatron import config as configs
from siri_megatron.errors import DataError, RunFailed
from siri_megatron.files import read_json
from siri_megatron.launch.child import Child
from siri_megatron.launch.fleet import healthy
from siri_megatron.launch.key import make_key
from siri_megatron.launch.ports import PortHolder
from siri_megatron.launch.spec import ProcessSpec
from siri_megatron.paths import RunDir
from siri_megatron.study.plan import StudyPlan, run_config, warm_config, warm_path
from siri_megatron.study.schedule import Job, jobs

LOOK_EVERY_S = 0.3
GRACE_S = 10.0
TRIES = 2
"""Of a run: it goes on from its last commit."""
SIRI = (sys.executable, "-m", "siri_megatron.cli")
HOST = "127.0.0.1"


class Stopped(Exception):
    """Another lane failed, or somebody wants the study to end."""


@dataclass(frozen=True)
class Served:
    """An engine that runs."""

    warm: int
    process: Child
    url: str
    holder: PortHolder


class Lane:
    """Does jobs on one core.

    Args:
        hold: descriptor of the study's lock; the guards keep it open.
        stop: set when the lane is to end.
    """

    def __init__(self, plan: StudyPlan, place: Path, core: int, *, hold: int, stop: threading.Event) -> None:
        self.plan, self.place, self.core, self.hold, self.stop = plan, place, core, hold, stop
        self.tag = secrets.token_hex(8)
        self.key_file = place / f".key-{core}"
        self.engine: Served | None = None

    @property
    def held(self) -> int | None:
        """Warm start of the engine."""
        return self.engine.warm if self.engine else None

    def do(self, job: Job) -> None:
        """Do a job to its end.

        Raises:
            RunFailed: it failed, or took too long.
            Stopped: the lane is to end.
        """
        self._run(job) if job.arm else self._warm_up(job)

    def close(self) -> None:
        """End the engine."""
        if self.engine:
            self._end(self.engine.process)
            self.engine.holder.close()
            self.engine = None

    def _warm_up(self, job: Job) -> None:
        config = warm_config(self.plan, job.seed, self.place)
        file = self._write(config, job.name)
        failed = self._wait(self._start(job.name, "sft", str(file), "--fresh"))
        if failed:
            raise RunFailed(f"warm start {job.seed} ended with {failed}", rule="runs start from a warm start",
                            fix=f"look at {self._log(job.name)}")

    def _run(self, job: Job) -> None:
        for _ in range(TRIES):
            engine = self._engine_for(job)
            config = run_config(self.plan, job.arm, job.seed, self.place, warm_path(self.plan, job.warm, self.place),
                                engine={"urls": [engine.url], "key_file": str(self.key_file)})
            if not self._wait(self._start(job.name, "train", str(self._write(config, job.name)), "--resume")):
                return
        result = read_json(RunDir(self.place / job.name).result) or {}
        raise RunFailed(f"run {job.name} failed {TRIES} times: {result.get('reason', 'no result.json')}",
                        rule="a study is whole: every run of it succeeds",
                        fix=f"look at {self._log(job.name)}, then start the study again: it goes on")

    def _engine_for(self, job: Job) -> Served:
        if self.engine and (self.engine.warm != job.warm or self.engine.process.poll() is not None):
            self.close()
        if not self.engine:
            self.engine = self._serve(job)
        return self.engine

    def _serve(self, job: Job) -> Served:
        """Start an engine with the longest context that an arm needs."""
        model = warm_path(self.plan, job.warm, self.place)
        wanted = max((run_config(self.plan, arm, job.seed, self.place, model) for arm in self.plan.arms),
                     key=lambda config: config.max_model_len)
        name = f"engine-{self.core}"
        file, key = self._write(wanted, name), make_key(self.key_file)
        holder = PortHolder(HOST, 0, 1)
        url = f"http://{HOST}:{holder.ports[0]}"
        process = self._start(name, "engine", str(file), "--host", HOST, "--port", str(holder.ports[0]),
                              "--key-file", str(self.key_file))
        served = self.engine = Served(job.warm, process, url, holder)  # from here on `close` ends it
        self._until(lambda: healthy(url, key) or process.poll() is not None, self.plan.engine_start_s,
                    f"the engine of core {self.core} to serve")
        if process.poll() is not None:
            raise RunFailed(f"the engine of core {self.core} ended with {process.poll()}",
                            rule="a lane has one engine", fix=f"look at {self._log(name)}")
        return served

    def _write(self, config: configs.Section, name: str) -> Path:
        path = self.place / "configs" / f"{name}.yaml"
        configs.save(config, path)
        return path

    def _log(self, name: str) -> Path:
        return self.place / "logs" / f"{name}.log"

    def _start(self, name: str, *arguments: str) -> Child:
        spec = ProcessSpec(name, "main", (*SIRI, *arguments), self._log(name), cores=(self.core,))
        return Child(spec, tag=self.tag, hold=self.hold, grace_s=GRACE_S)

    def _wait(self, process: Child) -> int:
        """Its exit status, once it has ended."""
        try:
            self._until(lambda: process.poll() is not None, self.plan.timeout_s, f"{process.role} to end")
        finally:
            self._end(process)
        return process.poll() or 0

    def _until(self, true: Callable[[], bool], seconds: float, what: str) -> None:
        deadline = time.monotonic() + seconds
        while not true():
            if self.stop.wait(LOOK_EVERY_S):
                raise Stopped
            if time.monotonic() > deadline:
                raise RunFailed(f"waited {seconds:.0f} s for {what}", rule="timeout_s and engine_start_s of the plan "
                                "bound every wait", fix="raise them, or look why it is slow")

    def _end(self, process: Child) -> None:
        """End a process that may have ended, and wait for its guard."""
        process.stop()
        deadline = time.monotonic() + 2 * GRACE_S
        while process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.05)
        process.kill()


def refuse_useless(plan: StudyPlan, place: Path, job: Job) -> None:
    """Judge the warm start of a finished job, if that is the run that judges it.

    Raises:
        DataError: its accuracy before training is outside of what the plan allows.
    """
    allowed = plan.warm_starts.within
    if not allowed or job != next(other for other in jobs(plan) if other.arm and other.warm == job.warm):
        return
    file = RunDir(place / job.name).evaluations / "start.json"
    accuracy = (read_json(file) or {}).get("accuracy", nan)
    if not allowed[0] <= accuracy <= allowed[1]:
        warm = job.warm or plan.warm_starts.path
        raise DataError(f"warm start {warm}: {accuracy:.1%} right before training ({file})",
                        rule=f"warm_starts.within={list(allowed)}: else there is nothing to learn, or nothing to lose",
                        fix="give another seed or config in its place, and the plan another name")


def finished(plan: StudyPlan, place: Path, job: Job) -> bool:
    """True if the job was done before, by this plan."""
    if not job.arm:
        return (warm_path(plan, job.seed, place) / "config.json").is_file()
    return (read_json(RunDir(place / job.name).result) or {}).get("status") == "success"

