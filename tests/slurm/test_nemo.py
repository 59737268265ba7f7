"""Real nemo-run on a real Slurm, and on this machine: experiments end, say how, and leave nothing.

Learners on a made ledger: how a run is started and watched is the matter here. With engines: `test_nemo_soak`.
Guarded against, of nemo-run 0.11.1: a failed component that is reported as success, a job that is cancelled because
accounting is off, what depends on a failed task and starts all the same.
"""

from __future__ import annotations

import dataclasses
import json
import os
import re
import signal
from pathlib import Path

import pytest
from nemorun import LAUNCHER, NemoRun, options, told
from real_run import RealRun
from recorded import SCHEDULE, record
from slurm_cluster import Cluster, wait_for

from siri_megatron.paths import RunDir

FOUR_STEPS = (*SCHEDULE, "budget.cycle_steps=4")
ALONE = (*FOUR_STEPS, "learner.pp=1", "checkpoint.timeout_s=20", "learner.heartbeat_timeout_s=300")
NODES = ("launch.nodes=2", "launch.learner.nodes=1", "launch.engines.nodes=1", "push.backend=gloo")
SLURM = ("run.executor=slurm", "run.executor.partition=batch")
ACCOUNTING = r"""#!/bin/bash
for last; do :; done
echo "JobID|JobName|Partition|Account|AllocCPUS|State|ExitCode"
scontrol show job --oneliner "$last" | sed -nE \
    's/^JobId=([0-9]+) JobName=([^ ]+) .*JobState=([A-Z_]+) .*ExitCode=([0-9:]+) .*/\1|\2|batch||2|\3|\4/p'
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("nemo")


@pytest.fixture(scope="module")
def runs(place: Path) -> Path:
    return place / "runs"


@pytest.fixture(scope="module")
def recorded(runs: Path) -> Path:
    return record(runs, "recorded", *FOUR_STEPS)


@pytest.fixture(scope="module")
def nemo(cluster: Cluster, place: Path) -> NemoRun:
    assert (LAUNCHER / "nemorun").is_file(), "make setup-launch"
    return NemoRun(cluster, place / "home")


def verdicts(printed: str) -> dict[str, tuple[str, str]]:
    """The table at the end: task -> what nemo-run says, what counts."""
    lines = [re.split(r"\s{2,}", line.strip()) for line in printed.splitlines()]
    first = next(index for index, line in enumerate(lines) if line[:2] == ["task", "nemo-run"])
    return {line[0]: (line[1], line[2]) for line in lines[first + 1:] if len(line) >= 3}


def recorder(place: Path) -> Path:
    """An interpreter that notes how it is called, and does nothing: what starts it is compared."""
    python = place / "python"
    python.write_text('#!/bin/bash\nfor last; do :; done\n'
                      'python3 -c "import json, os, sys; print(json.dumps([sys.argv[1:], dict(os.environ)]))" "$@" '
                      f'>"{place}/seen-$(date +%s%N).json"\n')
    python.chmod(0o755)
    return python


def loading(place: Path) -> str:
    """Learners that load for ever: the override that makes them."""
    python = place / "loading"
    python.write_text("#!/bin/sh\nexec sleep 600\n")
    python.chmod(0o755)
    return f"launch.learner.python={python}"


def seen(place: Path) -> list[tuple[list[str], dict[str, str]]]:
    """Argv and environment of every call since the last look, by node; without the head's address, which differs."""
    found = []
    for path in place.glob("seen-*.json"):
        argv, env = json.loads(path.read_text())
        path.unlink()
        argv[argv.index("--head") + 1] = "HEAD"
        found.append((argv, env))
    return sorted(found, key=lambda call: call[0][-1])


def test_one_command(nemo: NemoRun, runs: Path, place: Path) -> None:
    """Local, sbatch and nemo-run's two executors start the same argv under the same environment, on every node."""
    given = (*NODES, f"launch.python={recorder(place)}", "launch.interface=lo", "checkpoint.timeout_s=20")
    shell = ("configs/tiny.yaml", "name=same", f"runs_dir={runs}", *given, "launch.env={A: '1', B: \"two 'words'\"}")
    nemos = [*options(runs, "same", given), "config.launch.env={'A': '1', 'B': \"two 'words'\"}"]
    nemo.cluster.siri("launch", "local", *shell)
    calls = {"local": seen(place)}
    nemo.cluster.siri("launch", "slurm", *shell)
    jobs = json.loads((runs / "same" / "launch" / "job.json").read_text())["jobs"]
    wait_for(lambda: all(state.ended for state in nemo.cluster.states(jobs[0])), 60, "the job's end")
    calls["sbatch"] = seen(place)
    nemo.run("train", *nemos, code=3)
    calls["nemo-run, local"] = seen(place)
    nemo.run("train", *nemos, *SLURM, code=3)
    calls["nemo-run, slurm"] = seen(place)
    argvs = {name: [argv for argv, _ in each] for name, each in calls.items()}
    assert [argv[-2:] for argv in argvs["local"]] == [["--node", "0"], ["--node", "1"]]
    assert all(each == argvs["local"] for each in argvs.values()), argvs
    wanted = {"A": "1", "B": "two 'words'", "NCCL_SOCKET_IFNAME": "lo", "PYTHONUNBUFFERED": "1"}
    for name, each in calls.items():
        assert [{key: env.get(key) for key in wanted} for _, env in each] == [wanted, wanted], name


def test_a_run_on_this_machine(nemo: NemoRun, runs: Path, recorded: Path) -> None:
    said = nemo.run("train", *options(runs, "here", ALONE), f"replay={recorded}")
    assert verdicts(said)["here"] == ("SUCCEEDED", "success: every main process ended with 0"), said
    assert RealRun(RunDir(runs / "here")).result["step"] == 4


def sacct(place: Path) -> str:
    """A PATH with an sacct that answers as one with a database does (there is none here, and the real one refuses)."""
    directory = place / "accounting"
    directory.mkdir(exist_ok=True)
    (directory / "sacct").write_text(ACCOUNTING)
    (directory / "sacct").chmod(0o755)
    return f"{directory}:"


@pytest.mark.parametrize("accounting", [False, pytest.param(True, marks=pytest.mark.soak)])
def test_a_run_on_slurm(nemo: NemoRun, runs: Path, recorded: Path, place: Path, accounting: bool) -> None:
    """State and log are right, from nemo-run's side and from siri's, and from another process."""
    name = f"there-{accounting}"
    here = dataclasses.replace(nemo, path=sacct(place) if accounting else "")
    said = here.run("train", *options(runs, name, ALONE), f"replay={recorded}", *SLURM)
    assert verdicts(said)[name] == ("SUCCEEDED", "success: every main process ended with 0"), said
    assert "SUCCEEDED" in here.ask("status", here.newest(name))
    assert "replay success after 4 of 4 steps" in here.ask("logs", here.newest(name)), "nemo-run finds the job's log"
    assert "COMPLETED" in here.cluster.siri("launch", "status", str(runs / name))
    assert "replay success after 4 of 4 steps" in here.cluster.siri("launch", "logs", str(runs / name), "-n", "8")
    assert "\x1b" not in next((runs / name / "launch").glob("*.log")).read_text(), "no display is drawn into a log"
    assert here.cluster.job_processes() == []


@pytest.mark.soak
def test_the_notice_reaches_the_run(nemo: NemoRun, runs: Path, recorded: Path) -> None:
    """It commits, requeues itself and goes on, all in one log; nemo-run waits for the end. (Quickly, with a played
    srun: tests/nemo/test_task.py.)"""
    process = nemo.start("train", *options(runs, "noticed", ALONE), f"replay={recorded}", *SLURM)
    run = RunDir(runs / "noticed")
    wait_for(run.pulses.exists, 400, "learners")
    (job,) = json.loads(run.job.read_text())["jobs"]
    nemo.cluster.slurm("scancel", "--signal=USR1", "--batch", job)
    said = told(process)
    assert nemo.cluster.states(job)[0].restarts == 1
    assert verdicts(said)["noticed"] == ("SUCCEEDED", "success: every main process ended with 0"), said
    log = nemo.ask("logs", nemo.newest("noticed"))
    assert "requeue 1" in log
    assert "replay success after 4 of 4 steps" in log


@pytest.mark.parametrize("executor", [(), SLURM])
def test_a_learner_that_exits_with_3(nemo: NemoRun, runs: Path, recorded: Path, place: Path,
                                     executor: tuple[str, ...]) -> None:
    python = place / "dies"
    python.write_text('#!/bin/sh\nexit 3\n')
    python.chmod(0o755)
    name = f"dies{len(executor)}"
    said = nemo.run("train", *options(runs, name, (*ALONE, f"launch.learner.python={python}")), f"replay={recorded}",
                    *executor, code=3)
    state, verdict = verdicts(said)[name]
    assert state == "FAILED"
    assert verdict.startswith("failed: learner-0: ended with status 3"), said


def test_cancel_on_slurm_leaves_no_process(nemo: NemoRun, runs: Path, recorded: Path, place: Path) -> None:
    name = "cancelled"
    nemo.run("train", "--detach", *options(runs, name, (*ALONE, loading(place))), f"replay={recorded}", *SLURM)
    wait_for(lambda: any("sleep 600" in line for line in nemo.cluster.job_processes()), 400, "the learner's start")
    nemo.ask("cancel", nemo.newest(name))
    wait_for(lambda: not nemo.cluster.job_processes(), 30, lambda: f"no process: {nemo.cluster.job_processes()}")
    assert "CANCELLED" in nemo.ask("status", nemo.newest(name))


def test_cancel_on_this_machine_leaves_no_process(nemo: NemoRun, runs: Path, recorded: Path, place: Path) -> None:
    """SIGTERM (or Ctrl-C) to nemo-run ends what it waits for."""
    here = dataclasses.replace(nemo, home=place / "home-of-stopped")
    process = here.start("train", *options(runs, "stopped", (*ALONE, loading(place))), f"replay={recorded}")
    wait_for(lambda: any("sleep 600" in line for line in here.living()), 400, "the learner's start")
    os.kill(process.pid, signal.SIGTERM)
    said, _ = process.communicate(timeout=300)
    assert process.returncode != 0, said
    wait_for(lambda: not here.living(), 30, lambda: f"no process: {here.living()}")


def test_runs_of_a_sweep_end_in_one_comparison(nemo: NemoRun, runs: Path, recorded: Path) -> None:
    """Two learning rates: a ledger holds one schedule. Two schedules with two seeds: `test_nemo_soak`."""
    sweep = "config.launch.slurm.sweep={'seed': [1], 'optimizer.lr': [0.0001, 0.001]}"
    said = nemo.run("sweep", *options(runs, "rates", ALONE), sweep, f"replay={recorded}", *SLURM)
    names = [f"rates-seed1-lr{lr}" for lr in (0.0001, 0.001)]
    assert verdicts(said) == dict.fromkeys(names, ("SUCCEEDED", "success: every main process ended with 0")) | {
        "comparison": ("SUCCEEDED", "succeeded")}, said
    (log,) = (runs / "rates-comparison" / "launch").glob("comparison-*.log")
    assert str(log) in said, "where to look if it had failed"
    tables = list((runs / "rates-comparison").glob("*.csv"))
    rows = [path.read_text() for path in tables]
    assert any(all(name in text for name in names) for text in rows), tables
    assert (runs / "rates-comparison" / "comparison.html").stat().st_size > 100_000
