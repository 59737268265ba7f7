"""Handing tasks to nemo-run, and saying how they ended.

Invariants:

- own_verdict: how a run ended is what its result file says; how another task ended, its exit status as Slurm (or this
  machine) has it. nemo-run's opinion stands beside it.
- known_to_siri: `siri launch status`, `logs` and `cancel` know a run that nemo-run submitted.
- one_after_another: on this machine runs do not share the cores; nemo-run would start all at once.
- ends_with_me: what runs on this machine ends with the process that started it, by Ctrl-C or SIGTERM; nemo-run would
  leave it, and knows no other way to cancel it. What runs under Slurm goes on.
"""

from __future__ import annotations

import dataclasses
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import nemo_run
from rich.console import Console
from rich.table import Table

from siri_megatron.files import read_json
from siri_megatron.launch.launch_command import check_directory, job_log, note_job
from siri_megatron.nemo.executors import OneLog, for_task
from siri_megatron.nemo.task import Task
from siri_megatron.nemo.tunnel import SSHTunnel
from siri_megatron.paths import RunDir

Start = Callable[[nemo_run.Experiment], object]


def run_tasks(title: str, tasks: Sequence[Task], executor: nemo_run.Executor, console: Console,
              start: Start = nemo_run.Experiment.run) -> int:
    """Run the tasks as one experiment, in the order that they need; returns 0 if all succeeded (or are under way).

    Args:
        start: starts the experiment; `Experiment.dryrun`, or `Experiment.run` with options of its own.

    Raises:
        ConfigError: a run directory is in use, or holds another run.
    """
    remote = isinstance(getattr(executor, "tunnel", None), SSHTunnel)
    for task in tasks:
        if task.trains and not remote:
            check_directory(task.job.config)
    if isinstance(executor, nemo_run.LocalExecutor):
        tasks = in_a_row(tasks)
    stamps = tasks[0].job.place.directory / tasks[0].job.config.runs_dir / f"{title}-experiment"
    experiment = nemo_run.Experiment(title, executor=executor, enable_goodbye_message=False)
    with ends_with_me(experiment), experiment:
        for task in tasks:
            script, its_own = for_task(executor, task, stamps.absolute())
            experiment.add(script, executor=its_own, name=task.name, dependencies=list(task.needs))
        start(experiment)
        if not remote:
            _record(experiment, tasks)
    if not started(experiment):
        return 0
    return say(experiment, tasks, console)


def in_a_row(tasks: Sequence[Task]) -> list[Task]:
    """Every task needs the one before it, too; what merely follows it does not ask how that ended."""
    done: list[Task] = []
    for task in tasks:
        before = done[-1].name if done else ""
        if before and before not in task.needs:
            task = dataclasses.replace(task, needs=(*task.needs, before), after="end" if not task.needs else task.after)
        done.append(task)
    return done


@contextmanager
def ends_with_me(experiment: nemo_run.Experiment) -> Iterator[None]:
    """Within, a signal ends the local tasks. In the handler, for nemo-run's clean-up waits for their natural end."""

    def end(number: int, frame: object) -> None:
        for job in experiment.jobs:
            if isinstance(job.executor, nemo_run.LocalExecutor) and job.handle:
                job.cancel(experiment._runner)
        raise SystemExit(128 + number)

    before = {number: signal.signal(number, end) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def started(experiment: nemo_run.Experiment) -> bool:
    return any(job.launched for job in experiment.jobs)


def _record(experiment: nemo_run.Experiment, tasks: Sequence[Task]) -> None:
    """Which Slurm job a run is: what `siri launch slurm` writes, too."""
    for task, job in zip(tasks, experiment.jobs, strict=True):
        if task.trains and isinstance(job.executor, nemo_run.SlurmExecutor) and job.handle:
            script = Path(job.executor.experiment_dir) / f"{job.id}_sbatch.sh"
            note_job(RunDir(task.job.root), {
                "jobs": [slurm_id(job)], "script": str(script), "submitted": time.time(),
                "runs": [str(task.job.root)], "log": job_log(task.job.root, task.job.config, "*")})


def slurm_id(job: nemo_run.run.job.Job) -> str:
    """The number in `slurm_tunnel://nemo_run/123`."""
    return str(job.handle.rpartition("/")[2])


def say(experiment: nemo_run.Experiment, tasks: Sequence[Task], console: Console) -> int:
    """A line for each task; returns 0 if none failed."""
    table = Table("task", "nemo-run", "verdict", "where", box=None)
    good = True
    for task, job in zip(tasks, experiment.jobs, strict=True):
        verdict, fine = verdict_of(task, job.state.name)
        good &= fine
        table.add_row(task.name, job.state.name, verdict, where(task, job))
    console.print("\n", table, sep="")  # nemo-run's live display leaves the cursor in its last line
    return 0 if good else 3


def where(task: Task, job: nemo_run.run.job.Job) -> str:
    """Where to look: the run; of another command its log (on this machine: nemo-run's directory, which holds it)."""
    if task.trains:
        return str(task.job.root)
    details = getattr(job.executor, "job_details", None)
    if isinstance(details, OneLog):
        return details.log.replace("%j", slurm_id(job))
    return str(job.executor.job_dir)


def verdict_of(task: Task, state: str) -> tuple[str, bool]:
    """What is said of a task, and whether that is no failure. state: what nemo-run says."""
    if not task.trains or state in ("PENDING", "RUNNING", "SUBMITTED"):
        return state.lower(), state not in ("FAILED", "CANCELLED", "UNKNOWN")
    result = read_json(RunDir(task.job.root).result)
    if result is None:
        return "no result file", False
    return f"{result['status']}: {str(result['reason']).splitlines()[0]}", result["status"] == "success"
