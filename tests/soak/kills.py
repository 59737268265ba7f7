"""A real run that is killed by SIGKILL at random moments, and resumed, until it is done."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from engine_fleet import wait_until
from process_table import Watch
from real_run import REPO, SMALL, RealRun, command

from siri_megatron.observe import jsonl
from siri_megatron.paths import RunDir

SIX_STEPS = (*SMALL, "budget.cycle_steps=6")
GUARD = "siri_megatron.launch.guard"
WORDS = {"learner": "siri_megatron.learner.main", "engine": "api_server.entry",
         "collector": "siri_megatron.rollout.service"}
ROLES = ("supervisor", *WORDS)
STARTING_S = 20.0  # about as long as engines and learners take to load
WORKING_S = 1.0  # about a step
MARKS = ("ready", "evaluation", "commit", "export")  # events
GONE_S = 20.0
ATTEMPT_S = 300.0


@dataclass(frozen=True)
class Kill:
    """Whom, and when: `delay_s` after so many marks of progress in this attempt (0: after its start)."""

    role: str
    marks: int
    delay_s: float
    which: float  # in [0, 1): picks one of several processes of a role


def schedule(seed: int) -> Iterator[Kill]:
    """Kills without end: in every round each role once, one of the round while the processes load."""
    rng = random.Random(seed)
    while True:
        early = rng.choice(ROLES)
        for role in rng.sample(ROLES, len(ROLES)):
            marks = 0 if role == early else rng.randint(1, 3)
            yield Kill(role, marks, rng.uniform(0, WORKING_S if marks else STARTING_S), rng.random())


@dataclass
class KilledRun:
    """One run directory, and what was done to it."""

    runs: Path
    name: str
    killed: list[str] = field(default_factory=list)
    attempts: int = 0
    slowest_end_s: float = 0.0
    named: int = 0  # kills after which the verdict named the killed process as the cause

    @property
    def run(self) -> RealRun:
        return RealRun(RunDir(self.runs / self.name))

    def play(self, kills: Iterator[Kill]) -> None:
        """Attempt after attempt, each with the next kill (a spent iterator: none), until the run is done."""
        while not self._attempt(next(kills, None)):
            pass

    def _attempt(self, kill: Kill | None) -> bool:
        """Start or resume; returns whether the run ended by itself with success."""
        self.attempts += 1
        log = self.runs / f"{self.name}-{self.attempts}.log"
        flags = ("--resume",) if self.attempts > 1 else ()
        with log.open("wb") as output:
            process = subprocess.Popen(command("tiny.yaml", self.runs, self.name, *SIX_STEPS, flags=flags),
                                       cwd=REPO, stdout=output, stderr=subprocess.STDOUT)
        watch = Watch(process.pid)
        try:
            hit = kill is not None and self._strike(kill, process, watch)
            return self._ended(process, watch, hit, log)
        finally:
            process.kill()
            process.wait()
            watch.close()

    def _strike(self, kill: Kill, process: subprocess.Popen[bytes], watch: Watch) -> bool:
        """Wait for the moment, then kill; False if the run ended first."""
        goal = self._marks() + kill.marks
        wait(lambda: process.poll() is not None or self._marks() >= goal, f"{kill.marks} marks of progress")
        moment = time.monotonic() + kill.delay_s
        while process.poll() is None and time.monotonic() < moment + ATTEMPT_S:
            victims = [process.pid] if kill.role == "supervisor" else watch.children(GUARD, WORDS[kill.role])
            if victims and time.monotonic() >= moment:
                os.kill(victims[int(kill.which * len(victims))], signal.SIGKILL)
                self.killed.append(kill.role)
                return True
            time.sleep(0.02)
        assert process.poll() is not None, f"no {kill.role} to kill in {ATTEMPT_S} s"
        return False

    def _ended(self, process: subprocess.Popen[bytes], watch: Watch, hit: bool, log: Path) -> bool:
        """Wait for the end of every process of the attempt."""
        if not hit:
            process.wait(ATTEMPT_S)
            assert process.returncode == 0, log.read_text()
        struck = time.monotonic()
        survives = hit and self.killed[-1] == "engine"  # the run goes on, unless engines were still loading
        wait_until(lambda: process.poll() is not None and not watch.left(), ATTEMPT_S if survives else GONE_S,
                   f"all {watch.seen} processes of attempt {self.attempts} to be gone after {self.killed[-1:]}")
        if hit and process.returncode:
            self.slowest_end_s = max(self.slowest_end_s, time.monotonic() - struck)
            self.named += self._blamed().startswith(self.killed[-1])
        return process.returncode == 0

    def _blamed(self) -> str:
        """The process that the verdict names first; a supervisor that was killed cannot name itself."""
        result = self.run.result if self.run.paths.result.exists() else {}
        return result["failures"][0]["role"] if result.get("failures") else "supervisor"

    def _marks(self) -> int:
        """Marks of progress, all attempts together."""
        return sum(event["kind"] in MARKS for event in jsonl.read(self.run.paths.events))


def wait(done: Callable[[], bool], what: str) -> None:
    wait_until(done, ATTEMPT_S, what, every_s=0.02)
