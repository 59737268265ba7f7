"""`siri launch`: write a job for a run and hand it over, then look at it, read its logs, cancel it."""

from __future__ import annotations

import os
import re
import socket
import sys
import time
from argparse import Namespace
from collections.abc import Sequence
from glob import escape, glob
from pathlib import Path
from typing import Any

from rich.console import Console

from siri_megatron import config as configs
from siri_megatron.config import RunConfig, signal_lead_s
from siri_megatron.config.launch import END_S
from siri_megatron.errors import ConfigError, ModelError
from siri_megatron.files import read_json, write_json, write_text
from siri_megatron.launch import preflight, slurm
from siri_megatron.launch.interpreter import runs_python
from siri_megatron.launch.job import Job, Place, make_job
from siri_megatron.launch.model_files import inspect_model
from siri_megatron.launch.progress import last_commit, steps_done
from siri_megatron.launch.render import local_script, sbatch_script
from siri_megatron.observe import jsonl
from siri_megatron.observe.render import say
from siri_megatron.paths import RunDir


def launch(args: Namespace, console: Console) -> int:
    """Dispatch; returns the exit status."""
    action = {"slurm": to_slurm, "local": to_local, "status": status, "logs": logs, "cancel": cancel}[args.action]
    return action(args, console)


def to_slurm(args: Namespace, console: Console) -> int:
    """Render, and submit unless it is a dry run."""
    job = _job(args)
    script = sbatch_script(job)
    if args.dry_run:
        console.out("# config", configs.as_yaml(job.config), f"# {job.files / 'job.sh'}", script, sep="\n",
                    highlight=False)
        _note_model(job, console)
        return 0
    for run in job.runs:
        _check_no_job(run.root)
    path = _write(job, script)
    _note_model(job, console)
    ids: list[str] = []
    for _ in range(job.config.launch.slurm.chain):
        ids.append(slurm.submit(path))
        _record(job, path, ids)  # at once: it can be cancelled, whatever becomes of the next one
    say(console, f"job      {', '.join(ids)}")
    say(console, f"script   {path}")
    say(console, f"log      {job_log(job.root, job.config, ids[0] + '_*' * (len(job.runs) > 1))}")
    for run in job.runs:
        say(console, f"run      {run.root}  (metrics.jsonl, logs, result.json)")
    say(console, f"next     siri launch status {job.root}")
    return 0


def to_local(args: Namespace, console: Console) -> int:
    """The same job with every node as a process of this machine. Becomes that job: signals find who heeds them, and
    nobody between cuts the end short. (Python's `subprocess.run` kills its child 0.25 s after Ctrl-C.)"""
    job = _job(args)
    if len(job.runs) > 1:
        raise ConfigError(f"launch.slurm.sweep makes {len(job.runs)} runs, and this machine would take one at a time",
                          rule="siri launch local starts one run", fix="launch.slurm.sweep={} and the keys of one run")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    script = local_script(job, port)
    if args.dry_run:
        console.out("# config", configs.as_yaml(job.config), f"# {job.files / 'local.sh'}", script, sep="\n",
                    highlight=False)
        return 0
    path = _write(job, script, name="local.sh")
    sys.stdout.flush()
    return os.execvp("bash", ["bash", str(path)])  # never does


def status(args: Namespace, console: Console) -> int:
    """What Slurm says of the job, if there is one, and what the run says of itself."""
    root, record = _launched(args.run)
    states = slurm.states(record["jobs"]) if record else []
    for state in states:
        say(console, state.sentence())
    if record and not states:
        say(console, f"jobs {', '.join(record['jobs'])}: Slurm knows them no more")
    for run in map(RunDir, map(Path, record["runs"] if record else [root])):
        say(console, _progress(run))
    for state in states:
        if state.state == "RUNNING":
            say(console, f"look in  srun --jobid={state.job_id} --overlap --pty bash")
    return 0


def logs(args: Namespace, console: Console) -> int:
    """The end of the job's log, or of one process's."""
    root, record = _launched(args.run)
    run = RunDir(root)
    if args.role:
        paths = [run.logs / f"{args.role}.log"]
    else:  # what runs without a job prints to its terminal
        of_job = map(Path, glob(record["log"]) if record else ())
        paths = sorted(of_job, key=lambda path: path.stat().st_mtime)[-1:]
    for path in paths:
        if not path.is_file():
            there = ", ".join(sorted(found.stem for found in run.logs.glob("*.log"))) or "none yet"
            raise ConfigError(f"{path} does not exist", rule="ROLE is a process of the run", fix=f"one of: {there}")
        say(console, f"{path}:")
        console.out("\n".join(path.read_text(errors="replace").splitlines()[-args.lines:]), highlight=False)
    say(console, f"processes: {', '.join(sorted(found.stem for found in run.logs.glob('*.log'))) or 'none yet'}")
    return 0


def cancel(args: Namespace, console: Console) -> int:
    """Cancel, and wait until nothing of it runs. What was committed stays: launch again to go on."""
    root, record = _launched(args.run)
    if record is None:
        raise ConfigError(f"{root} has no job", rule="what is cancelled is a job of the scheduler",
                          fix="end a run without one by Ctrl-C, or SIGTERM to its siri: it commits first")
    slurm.cancel(record["jobs"])
    commit = last_commit(RunDir(root))
    say(console, f"cancelled {', '.join(record['jobs'])}; a new launch goes on "
                 f"{'from the start' if commit is None else f'before step {commit}'}")
    return 0


def _job(args: Namespace) -> Job:
    """The job of the config, every run of which was checked as far as a login node can."""
    config = configs.load(args.config, args.overrides)
    job = make_job(config, Place(Path.cwd(), runs_python(config)), args.replay.absolute() if args.replay else None)
    raw = config.model_dump(mode="json")
    for run in job.runs:
        one = configs.validate(configs.apply_overrides(raw, list(run.overrides)), str(args.config))
        check_directory(one)
    return job


def check_directory(config: RunConfig) -> None:
    """The run directory is free or holds this very run; the notice is longer than its commits took."""
    paths = RunDir(config.run_dir)
    preflight.check_run_dir(paths, shared=True)
    if paths.config.is_file():
        before = configs.load(paths.config)
        model = config.model.model_copy(update={"fingerprint": before.model.fingerprint})
        data = config.data.model_copy(update={"fingerprint": before.data.fingerprint})
        preflight.check_same_run(config.model_copy(update={"model": model, "data": data}), paths)
    longest = max((event["seconds"] for event in jsonl.read(paths.events) if event["kind"] == "commit"), default=0.0)
    if signal_lead_s(config) <= longest + END_S:
        raise ConfigError(f"launch.slurm.signal_lead_s={signal_lead_s(config):g}, but a commit of this run took "
                          f"{longest:.0f} s, and the end takes {END_S:g} s",
                          rule="the notice is longer than a save", fix="raise launch.slurm.signal_lead_s")


def _note_model(job: Job, console: Console) -> None:
    """Say what is wrong with the model as this machine sees it. The nodes may see it elsewhere: no reason to refuse."""
    try:
        inspect_model(job.config.model.path)
    except ModelError as error:
        say(console, f"note     {error.what}; a job that finds it so on its nodes ends at once, with status 2")


def _write(job: Job, script: str, name: str = "job.sh") -> Path:
    path = job.files / name
    configs.save(job.config, job.config_file)
    write_text(path, script)
    path.chmod(0o755)
    return path


def _check_no_job(root: Path) -> None:
    """Nothing that was submitted for this run is waiting or running."""
    record = _job_record(RunDir(root))
    for state in slurm.states(record["jobs"] if record else ()):
        if not state.ended:
            raise ConfigError(f"{root} has {state.sentence()}", rule="one job, or chain of jobs, works on a run",
                              fix=f"wait for its end, or siri launch cancel {root}; launch.slurm.chain=N makes a chain")


def _record(job: Job, script: Path, ids: Sequence[str]) -> None:
    """Which jobs work on these runs, and where each run's log is."""
    record = {"jobs": ids, "script": str(script), "submitted": time.time(), "runs": [str(run.root) for run in job.runs]}
    note_job(RunDir(job.root), record | {"log": job_log(job.root, job.config, "*")})
    for number, run in enumerate(job.runs if len(job.runs) > 1 else ()):
        own = {"element": number, "log": job_log(job.root, job.config, f"*_{number}"), "runs": [str(run.root)]}
        note_job(RunDir(run.root), record | own)


def note_job(run: RunDir, record: dict[str, Any]) -> None:
    """Write what `siri launch status`, `logs` and `cancel` need to know; what earlier jobs submitted is forgotten."""
    run.resubmitted.unlink(missing_ok=True)
    write_json(run.job, record)


def _job_record(run: RunDir) -> dict[str, Any] | None:
    """What was submitted for a run (of an array its element), with the jobs that these submitted in their place; None:
    nothing."""
    record = read_json(run.job)
    if record and "element" in record:
        record["jobs"] = [f"{job_id}_{record['element']}" for job_id in record["jobs"]]
    if record and run.resubmitted.is_file():
        record["jobs"] += re.findall(r"job (\d+)", run.resubmitted.read_text())
    return record


def job_log(root: Path, config: RunConfig, job_id: str) -> str:
    """Where a job's log is, as a pattern of `glob`: Slurm knows what its other patterns stand for."""
    log = config.launch.slurm.log.replace("%j", job_id)
    return str(Path(escape(str(root))) / re.sub(r"%\d*[A-Za-z]", "*", log))


def _launched(run: Path) -> tuple[Path, dict[str, Any] | None]:
    """Root of a run, and the record of its job; None: it was started without a scheduler."""
    for root in (run, Path("runs") / run):
        if RunDir(root).config.is_file() or RunDir(root).job.is_file():
            return root, _job_record(RunDir(root))
    raise ConfigError(f"{run} is no run", rule="RUN is the directory of a run that was launched",
                      fix="give its directory, as siri launch slurm or siri train printed it")


def _progress(run: RunDir) -> str:
    commit = last_commit(run)
    told = f"{run.root}: {steps_done(run)} steps, {'no commit' if commit is None else f'commit of step {commit}'}"
    if result := read_json(run.result):
        return f"{told}; {result['status']}: {str(result['reason']).splitlines()[0]}"
    events = jsonl.read(run.events)
    return f"{told}; last event {events[-1]['kind']}, {time.time() - events[-1]['ts']:.0f} s ago" if events else told
