"""Jobs that are broken off and go on: notice, dead node (with learners, on a made ledger); forbidden requeue, array and
chain (with a stand-in in the run's place).

The same with engines, a real time limit and a dead head is in `test_slurm_soak`.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from real_run import RealRun, same_weights
from recorded import SCHEDULE, record
from slurm_cluster import TWO_NODES, Cluster, Launched, python, wait_for

from siri_megatron.launch.slurm import JobState
from siri_megatron.paths import RunDir

# One learner (of PP2) on each of two nodes.
APART = (*SCHEDULE, *TWO_NODES, "launch.learner.nodes=2", "launch.engines.nodes=2")
LIMIT_S = 900  # of each wait; 30 s on an idle machine
ALONE = (*SCHEDULE, "learner.pp=1", "checkpoint.timeout_s=20")


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module")
def recorded(runs: Path) -> Path:
    return record(runs, "recorded", *SCHEDULE)


@pytest.fixture(scope="module")
def uninterrupted(cluster: Cluster, recorded: Path) -> RealRun:
    """The ledger, trained on by two learners that nobody interrupts."""
    cluster.siri("train", str(recorded / "config.yaml"), "--replay", str(recorded), "name=plain")
    return RealRun(RunDir(recorded.with_name("plain")))


def after_steps(run: Launched, count: int) -> None:
    wait_for(lambda: run.steps >= count, LIMIT_S, lambda: f"{count} steps:\n{run.log[-3000:]}")
    assert run.steps < 24, "it shall be broken off"


def assert_went_on(run: Launched, uninterrupted: RealRun) -> None:
    assert (run.result["status"], run.result["step"]) == ("success", 24)
    assert len(run.events("resume")) == 1
    assert same_weights(RealRun(run.paths).weights(), uninterrupted.weights())


def test_notice_commit_requeue_resume(cluster: Cluster, runs: Path, recorded: Path, uninterrupted: RealRun) -> None:
    run = cluster.launch(runs, "noticed", *APART, replay=recorded)
    after_steps(run, 2)
    cluster.slurm("scancel", "--signal=USR1", "--batch", run.jobs[0])  # what --signal=B:USR1@... sends
    (state,) = cluster.end(run, LIMIT_S)
    print(run.timings())
    assert (state.state, state.exit_code, state.restarts) == ("COMPLETED", "0:0", 1), run.log
    assert [event["by"] for event in run.events("stop_asked")] == ["the scheduler's notice"]
    assert_went_on(run, uninterrupted)
    assert len(list(run.paths.job.parent.glob("*.log"))) == 1, "the log is appended to over restarts"


def test_a_node_dies(cluster: Cluster, runs: Path, recorded: Path, uninterrupted: RealRun) -> None:
    run = cluster.launch(runs, "dies", *APART, "checkpoint.every_steps=1", replay=recorded)
    after_steps(run, 2)
    cluster.node("kill-node", "n2")
    try:
        (state,) = cluster.end(run, LIMIT_S)
    finally:
        cluster.node("start-node", "n2")
    print(run.timings())
    assert (state.state, state.restarts) == ("COMPLETED", 1), run.log
    assert "node 1 (n2) is lost" in run.events("node_lost")[0]["message"]
    assert "n2" not in cluster.slurm("scontrol", "show", "hostnames", state.nodes).split()
    assert_went_on(run, uninterrupted)


def test_the_local_launcher_starts_the_same_run(cluster: Cluster, runs: Path, recorded: Path,
                                                uninterrupted: RealRun) -> None:
    """No Slurm in it: both nodes are processes of this machine."""
    cluster.siri("launch", "local", "configs/tiny.yaml", "--replay", str(recorded), "name=local", f"runs_dir={runs}",
                 *APART)
    run = RealRun(RunDir(runs / "local"))
    assert run.result["status"] == "success"
    assert same_weights(run.weights(), uninterrupted.weights())


def stopping_once(place: Path, run: Path) -> str:
    """In a run's place, what stops at the notice, and then, started again, succeeds: the override that makes it."""
    started, notice = place / "started", run / "interrupt"
    stand_in = python(place / "python", f"test -e {started} && exit 0\ntouch {started}\n"
                      f"until test -e {notice}; do sleep 0.1; done\nexit 130")
    return f"launch.python={stand_in}"


def test_a_requeue_that_the_site_forbids(cluster: Cluster, runs: Path, tmp_path: Path) -> None:
    """The job submits its own script again, and counts."""
    run = cluster.launch(runs, "refused", stopping_once(tmp_path, runs / "refused"),
                         "launch.slurm.directives=[--no-requeue]")
    wait_for((tmp_path / "started").exists, LIMIT_S, "the job to run")
    state, again = noticed_and_submitted(cluster, run)
    assert (state.state, state.exit_code) == ("FAILED", "130:0"), run.log
    assert (again.state, again.exit_code) == ("COMPLETED", "0:0"), run.log
    assert run.log.count("requeue 1") == 1


def noticed_and_submitted(cluster: Cluster, run: Launched) -> tuple[JobState, JobState]:
    """How the job ended after a notice, and the one that it submitted."""
    cluster.slurm("scancel", "--signal=USR1", "--batch", run.jobs[0])
    (state,) = cluster.end(run, LIMIT_S)
    (again,) = cluster.end(run, LIMIT_S, run.log.rpartition("Submitted batch job ")[2].split()[0])
    return state, again


@pytest.mark.soak
def test_a_forbidden_requeue_goes_on(cluster: Cluster, runs: Path, recorded: Path) -> None:
    """The same with a learner."""
    run = cluster.launch(runs, "forbidden", *ALONE, "launch.slurm.directives=[--no-requeue]", replay=recorded)
    after_steps(run, 2)
    _, again = noticed_and_submitted(cluster, run)
    assert (again.state, run.result["status"], run.result["step"]) == ("COMPLETED", "success", 24), run.log


def test_an_array_of_three_seeds(cluster: Cluster, runs: Path, tmp_path: Path) -> None:
    """Each element starts the run of its seed. In the runs' place: what notes how it is called."""
    notes = python(tmp_path / "python", f'echo "$@" >"{tmp_path}/$SLURM_ARRAY_TASK_ID"')
    run = cluster.launch(runs, "seeds", f"launch.python={notes}", "launch.slurm.sweep={seed: [1, 2, 3]}")
    states = cluster.end(run, LIMIT_S)
    assert [state.state for state in states] == ["COMPLETED"] * 3, run.log
    assert [f"name=seeds-seed{seed} seed={seed}" in (tmp_path / str(seed - 1)).read_text()
            for seed in (1, 2, 3)] == [True] * 3


def test_a_chain_of_two(cluster: Cluster, runs: Path, tmp_path: Path) -> None:
    """The first gets notice and has no requeue left; the second waits for its end, and starts the same run."""
    run = cluster.launch(runs, "chain", stopping_once(tmp_path, runs / "chain"), "launch.slurm.chain=2",
                         "launch.slurm.retries=0")
    first, second = run.jobs
    wait_for((tmp_path / "started").exists, LIMIT_S, "the first job to run")
    assert cluster.states(second)[0].state == "PENDING"
    cluster.slurm("scancel", "--signal=USR1", "--batch", first)
    (one,), (other,) = cluster.end(run, LIMIT_S, first), cluster.end(run, LIMIT_S, second)
    assert (one.state, one.exit_code) == ("FAILED", "130:0"), run.log
    assert (other.state, other.exit_code) == ("COMPLETED", "0:0"), run.log
    assert "none is left" in run.log
