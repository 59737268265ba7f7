"""All lanes of a study, side by side, until every job of the plan is done. Goes on where it was ended.

Invariant:
- one_plan_a_directory: a directory holds the runs of one fingerprint; those of another are never mixed in.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from pathlib import Path

from siri_megatron.errors import ConfigError
from siri_megatron.files import read_json, write_json
from siri_megatron.launch.lock import RunLock
from siri_megatron.observe.environment import environment
from siri_megatron.paths import RunDir
from siri_megatron.study.lane import Lane, Stopped, finished, refuse_useless
from siri_megatron.study.plan import StudyPlan, fingerprint
from siri_megatron.study.schedule import Job, jobs, next_job

Say = Callable[[str], None]
LOOK_EVERY_S = 0.5


class Board:
    """What is done and what is taken; all lanes ask it, from their threads."""

    def __init__(self, plan: StudyPlan, place: Path) -> None:
        self._lock = threading.Lock()
        self.jobs = jobs(plan)
        self.done = {job for job in self.jobs if finished(plan, place, job)}
        self._taken: set[Job] = set()

    def take(self, held: int | None) -> Job | None:
        """The next job for a lane; None: there is none at this moment."""
        with self._lock:
            job = next_job(self.jobs, self.done, self._taken, held)
            self._taken |= {job} if job else set()
            return job

    def finish(self, job: Job) -> str:
        """Count a job as done; returns how far the study is."""
        with self._lock:
            self._taken.discard(job)
            self.done.add(job)
            return f"{len(self.done)} of {len(self.jobs)}"

    @property
    def complete(self) -> bool:
        with self._lock:
            return len(self.done) == len(self.jobs)


def run_study(plan: StudyPlan, place: Path, cores: Sequence[int], say: Say) -> None:
    """Run what is missing, a lane a core.

    Args:
        place: directory of the study's runs; made if it is not there.

    Raises:
        ConfigError: the directory holds runs of another plan.
        RunFailed: a job failed twice, or another process runs this study.
        DataError: a warm start is of no use to the study (`warm_starts.within`).
    """
    place.mkdir(parents=True, exist_ok=True)
    with RunLock(RunDir(place)) as lock:
        _claim(plan, place)
        board, stop = Board(plan, place), threading.Event()
        for job in board.done:
            refuse_useless(plan, place, job)
        say(f"study {plan.name} ({fingerprint(plan)}): {len(board.done)} of {len(board.jobs)} jobs are done")
        lanes = [Lane(plan, place, core, hold=lock.descriptor, stop=stop) for core in cores]
        with ThreadPoolExecutor(len(lanes)) as pool:
            _until_done([pool.submit(_work, lane, board, say) for lane in lanes], stop)


def _claim(plan: StudyPlan, place: Path) -> None:
    file, mine = place / "study.json", fingerprint(plan)
    held = (read_json(file) or {}).get("fingerprint", mine)
    if held != mine:
        raise ConfigError(f"{place} holds runs of the plan {held}, this one is {mine}",
                          rule="the runs of a study are of one plan", fix="remove that directory, or rename this plan")
    write_json(file, {"fingerprint": mine, "plan": plan.model_dump(mode="json"), "environment": environment()})


def _until_done(lanes: Sequence[Future[None]], stop: threading.Event) -> None:
    """Wait for all lanes. The first that fails, or a Ctrl-C, ends the others."""
    try:
        wait(lanes, return_when=FIRST_EXCEPTION)
    finally:
        stop.set()
    for lane in wait(lanes).done:
        if (error := lane.exception()) and not isinstance(error, Stopped):
            raise error


def _work(lane: Lane, board: Board, say: Say) -> None:
    try:
        while not board.complete:
            job = board.take(lane.held)
            if job is None:
                if lane.stop.wait(LOOK_EVERY_S):
                    return
                continue
            began = time.monotonic()
            lane.do(job)
            refuse_useless(lane.plan, lane.place, job)
            say(f"{board.finish(job):>9}  {job.name}  {time.monotonic() - began:.0f} s")
    finally:
        lane.close()
