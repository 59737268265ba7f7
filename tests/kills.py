"""A real run that is killed by SIGKILL at random moments of chosen stages, and resumed, until it is done."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import time
from collections import Counter, deque
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import product
from pathlib import Path

from by_hand import ByHand
from engine_fleet import wait_until
from leftovers import Leftovers
from process_table import Watch
from real_run import REPO, SIRI, RealRun, command
from stages import BETWEEN, LOADING, STAGES, Stages

from siri_megatron.paths import RunDir

GUARD = "siri_megatron.launch.guard"
WORDS = {"learner": "siri_megatron.learner.main", "engine": "api_server.entry",
         "collector": "siri_megatron.rollout.service"}
ROLES = ("group", "supervisor", *WORDS)
# A replay has learners only, and a run on a given engine starts none: either starts in a third of the time.
IN_REPLAY = tuple(product(("planning", "training", "save", "commit", "export"), ("group", "supervisor", "learner")))
IN_RUN = tuple(cell for cell in product((*STAGES, LOADING), ROLES) if "engine" in cell or LOADING in cell)
ON_GIVEN = tuple(cell for cell in product(STAGES, ROLES) if cell not in IN_REPLAY + IN_RUN)
LEARNERS = 2
GONE_S = 30.0
PATIENCE_S = 900.0  # to load, or for a stage to come, on a machine with much other work: an engine has taken 300 s
# Two learners, one engine; every stage in each of the two phases, and an epoch of prompts ends with each of them. What
# costs time is the start, not the steps.
TINY = ("budget.cycle_steps=4", "budget.cycles=1", "rollout.prompts_per_step=4", "rollout.samples_per_prompt=4",
        "data.train_problems=8",
        "evaluation.problems=8", "evaluation.budgets=[48]", "checkpoint.every_steps=1", "engines.count=1",
        "engines.min_engines=0", "engines.restart_backoff_s=0.1", f"engines.start_timeout_s={PATIENCE_S}")


@dataclass(frozen=True)
class Kill:
    """Whom, and when: the `nth` time that a stage is entered in an attempt, after a part of what it usually takes."""

    stage: str
    role: str
    nth: int
    part: float  # in [0, 1)
    which: float = 0.0  # in [0, 1): one of several processes of a role; of the group, who goes first
    tries: int = 1  # if another stage is hit


def schedule(seed: int, cells: Sequence[tuple[str, str]], kills: int) -> list[Kill]:
    """Every cell once, then random ones; in random order."""
    rng = random.Random(seed)
    chosen = [*cells, *(rng.choice(cells) for _ in range(kills - len(cells)))]
    rng.shuffle(chosen)
    return [Kill(stage, role, 1 if stage in (LOADING, "export") else rng.randint(1, 2), rng.random(), rng.random(), 3)
            for stage, role in chosen]


@dataclass
class Score:
    """What was hit: by the stage that the run was in when the signal was sent."""

    hit: Counter[tuple[str, str]] = field(default_factory=Counter)
    attempts: int = 0
    runs: int = 0
    slowest_end_s: float = 0.0
    named: int = 0  # of learners and collectors that ended a run: the verdict names them first
    unnamed: list[str] = field(default_factory=list)
    left_to_the_next_start: int = 0  # files in shared memory after the supervisor was killed, alone or with all

    def table(self) -> str:
        rows = [*STAGES, LOADING, BETWEEN]
        lines = [f"{'':14}" + "".join(f"{role:>12}" for role in (*ROLES, "all"))]
        for stage in rows:
            counts = [self.hit[stage, role] for role in ROLES]
            lines.append(f"{stage:14}" + "".join(f"{count:12}" for count in (*counts, sum(counts))))
        totals = [sum(self.hit[stage, role] for stage in rows) for role in ROLES]
        return "\n".join([*lines, f"{'all':14}" + "".join(f"{count:12}" for count in (*totals, sum(totals)))])


@dataclass
class KilledRun:
    """One run directory, and what is done to it.

    Args:
        start: the command of the first attempt; the further ones resume.
    """

    run: RealRun
    stages: Stages
    score: Score
    start: Sequence[str]
    attempts: int = 0
    left: list[Path] = field(default_factory=list)  # in shared memory, to be removed by the next start

    def play(self, kills: deque[Kill]) -> None:
        """Attempt after attempt, each with the next kills, until the run is done."""
        self.score.runs += 1
        while not self._attempt(kills):
            pass

    def _attempt(self, kills: deque[Kill]) -> bool:
        """Start or resume; returns whether the run ended by itself with success."""
        self.attempts += 1
        self.score.attempts += 1
        argv = self.start if self.attempts == 1 else [*self.start[:3], "--resume", *self.start[3:]]
        attempt = Attempt(argv, self.run, self.stages, self.score,
                          self.run.paths.root.parent / f"{self.run.paths.root.name}-{self.attempts}.log")
        try:
            while kills:
                hit = attempt.strike(kills)
                if not hit:
                    break
                if attempt.ends(hit):
                    self._sweep(attempt, hit)
                    return False
            attempt.succeeds()
            self._sweep(attempt, None)
            return True
        finally:
            attempt.close()

    def _sweep(self, attempt: Attempt, hit: Kill | None) -> None:
        """Nothing is left; where the supervisor was killed, the next one removes what lies in shared memory."""
        attempt.left.check_gone(GONE_S, hit)
        if hit is None or hit.stage != LOADING:
            assert not [path for path in self.left if path.exists()], "the next start removes it"
            self.left = []
        left = attempt.left.shared()
        if hit and hit.role in ("group", "supervisor"):
            self.score.left_to_the_next_start += len(left)
            self.left += left
        else:
            assert left == [], f"{left} after {hit}"


class Attempt:
    """One life of a run."""

    def __init__(self, argv: Sequence[str], run: RealRun, stages: Stages, score: Score, log: Path) -> None:
        self.run, self.stages, self.score, self.log = run, stages, score, log
        stages.restart()
        with log.open("wb") as output:
            self.process = subprocess.Popen(argv, cwd=REPO, stdout=output, stderr=subprocess.STDOUT,
                                            env=stages.env(os.environ))
        self.watch = Watch(self.process.pid)
        self.left = Leftovers(run.paths, self.watch)
        self._victims: list[int] = []
        self._noted = False

    def strike(self, kills: deque[Kill]) -> Kill | None:
        """Wait for the moment of the next kill, then kill. None: the run ended first; the kill is still to be done.

        The stage of the answer is the one that was hit. One that was missed is tried again later.
        """
        kill, self._victims = self._next(kills), []
        if not kill or not self._moment(kill):
            return None
        hit = replace(kill, stage=self.stages.now)
        self._kill(kill)
        kills.remove(kill)
        if hit.stage != kill.stage and kill.tries > 1:
            kills.append(replace(kill, tries=kill.tries - 1))
        self.score.hit[hit.stage, hit.role] += 1
        print(f"{self.log.stem}: {hit.role} in {hit.stage}" + (f" (meant: {kill.stage})" * (hit.stage != kill.stage)),
              flush=True)
        return hit

    def ends(self, hit: Kill) -> bool:
        """Whether that kill ended the attempt; then everything must be gone soon, and the victim be named.

        The supervisor, if it lives, still has the tables to print.
        """
        if hit.role == "engine" and self.run.paths.fleet.exists():
            return False  # it is restarted, the run goes on
        struck = time.monotonic()
        wait_until(lambda: not self._below(), GONE_S, f"all {self.watch.seen} processes to be gone after {hit}")
        self.score.slowest_end_s = max(self.score.slowest_end_s, time.monotonic() - struck)
        wait_until(self._over, PATIENCE_S, f"the supervisor's end after {hit}")
        assert self.process.returncode != 0, self.log.read_text()
        if hit.role not in ("group", "supervisor"):
            self._check_named(hit)
        return True

    def succeeds(self) -> None:
        """Wait for the end of the run, without a kill."""
        self.left.note()
        self.process.wait(PATIENCE_S)
        assert self.process.returncode == 0, self.log.read_text()

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        self.watch.close()

    # --- inside

    def _below(self) -> list[int]:
        """What lives of all that was started; of a supervisor that was killed, nothing is left either."""
        return [pid for pid in self.left.processes() if pid != self.process.pid]

    def _over(self) -> bool:
        return self.process.poll() is not None

    def _next(self, kills: Sequence[Kill]) -> Kill | None:
        """While all load, first those that are to be killed then; later they wait for the next start."""
        self.stages.read(0)
        loading = self.stages.now == LOADING
        fit = [kill for kill in kills if (kill.stage == LOADING) == loading]
        return next(iter(fit), kills[0] if loading else None)

    def _moment(self, kill: Kill) -> bool:
        if kill.stage == LOADING:
            return self._while_loading(kill)
        for _ in range(kill.nth):
            if not self.stages.wait_for(kill.stage, lambda: self._look(kill.role), PATIENCE_S):
                return False
        # Half of a short stage is over before a signal is on its way.
        sleep_and_listen(self.stages, kill.part * min(self.stages.seconds(kill.stage) / 2, 1.0))
        return not self._over() and (bool(self._victims) or self._there(kill))

    def _while_loading(self, kill: Kill) -> bool:
        sleep_and_listen(self.stages, kill.part * self.stages.seconds(LOADING))
        return self._there(kill)

    def _there(self, kill: Kill) -> bool:
        """Wait for who is to be killed: an engine may still be on its way back from the kill before."""
        wait_until(lambda: self._over() or bool(self._of(kill.role)), PATIENCE_S, f"a {kill.role} to kill")
        return not self._over()

    def _look(self, role: str) -> bool:
        """Note who is who and holds what (it takes too long at the moment itself); returns whether the run is over."""
        if not self._victims and len(self._of("learner")) == LEARNERS:
            self._victims = self._of(role)
        if self.stages.now != LOADING and not self._noted:
            self._noted = True
            self.left.note()
        return self._over()

    def _of(self, role: str) -> list[int]:
        if role == "supervisor":
            return [self.process.pid]
        if role == "group":
            return self.watch.left()
        return self.watch.children(GUARD, WORDS[role])

    def _kill(self, kill: Kill) -> None:
        victims = self._victims or self._of(kill.role)
        if kill.role == "group":
            random.Random(kill.which).shuffle(victims)
        else:
            victims = [victims[int(kill.which * len(victims))]]
        send(victims)
        if kill.role == "group":
            send(self.watch.left())  # who came meanwhile

    def _check_named(self, hit: Kill) -> None:
        first = self.run.result["failures"][0]["role"]
        self.score.named += first.startswith(hit.role)
        if not first.startswith(hit.role):
            self.score.unnamed.append(f"{hit.role} in {hit.stage}: {first}")


def sleep_and_listen(stages: Stages, seconds: float) -> None:
    end = time.monotonic() + seconds
    while (left := end - time.monotonic()) > 0:
        stages.read(left)
    stages.read(0)


def send(pids: Sequence[int]) -> None:
    for pid in pids:
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            continue


def tiny_run(runs: Path, name: str, stages: Stages, score: Score, engine: ByHand | None = None) -> KilledRun:
    """On an engine of its own, or on a given one."""
    argv = command("tiny.yaml", runs, name, *TINY, *(engine.given if engine else ()))
    return KilledRun(RealRun(RunDir(runs / name)), stages, score, argv)


def tiny_replay(of: RealRun, name: str, stages: Stages, score: Score) -> KilledRun:
    return KilledRun(RealRun(RunDir(of.paths.root.parent / name)), stages, score, replay_command(of, name))


def replay_command(of: RealRun, name: str) -> list[str]:
    """Learners that train on the ledger of a run."""
    return [str(SIRI), "train", str(of.paths.config), "--replay", str(of.paths.root), f"name={name}"]
