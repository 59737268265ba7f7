"""What takes minutes on a real Slurm: time limits, dead nodes, arrays, chains. Timings are printed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from real_run import RealRun, same_weights
from recorded import SCHEDULE
from slurm_cluster import TWO_NODES, Cluster, Launched, wait_for

from siri_megatron.paths import RunDir

pytestmark = [pytest.mark.engine, pytest.mark.soak]
LIMIT_S = 900  # of each wait; an engine is ready after 20 s on an idle machine, after minutes on a loaded one
ALONE = (*SCHEDULE, "engines.count=1", "learner.pp=1", "checkpoint.timeout_s=20")
SIX_STEPS = ("budget.cycle_steps=6", "checkpoint.every_steps=1")


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("soak")


def equals_its_replay(cluster: Cluster, run: Launched) -> bool:
    """The same ledger, trained on by learners that nobody interrupts: the same weights, bit for bit?"""
    name = f"{run.paths.root.name}-replayed"
    cluster.siri("train", str(run.paths.config), "--replay", str(run.paths.root), f"name={name}")
    replayed = RealRun(RunDir(run.paths.root.with_name(name)))
    tag = sorted(path.name for path in run.paths.export.iterdir())[-1]
    return same_weights(RealRun(run.paths).weights(tag), replayed.weights(tag))


def while_it_runs(cluster: Cluster, run: Launched, true: Callable[[], bool], what: str) -> None:
    def look() -> bool:
        if true():
            return True
        (state,) = cluster.states(run.jobs[0])
        assert not state.ended or true(), f"the job ended before {what}:\n{run.log[-3000:]}"
        return False

    wait_for(look, LIMIT_S, lambda: f"{what}:\n{run.log[-3000:]}")


def after_steps(cluster: Cluster, run: Launched, count: int) -> None:
    while_it_runs(cluster, run, lambda: run.steps >= count, f"{count} steps")


def test_time_limit_requeue_resume(cluster: Cluster, runs: Path) -> None:
    """The notice comes while the run trains: it commits, requeues itself, and ends as if nothing had been.

    The time limit is Slurm's own, but it is set when two steps are there: how long engines take to start is no matter.
    Between a minute and two are then left, and the notice comes at Slurm's next look (every 30 s); the steps take a
    minute at least.
    """
    run = cluster.launch(runs, "limited", *ALONE, *TWO_NODES, "launch.slurm.signal_lead_s=110", "budget.cycle_steps=60")
    after_steps(cluster, run, 2)
    (running,) = cluster.states(run.jobs[0])
    hours, minutes, _ = map(int, running.run_time.split(":"))
    cluster.slurm("scontrol", "update", f"JobId={run.jobs[0]}", f"TimeLimit={60 * hours + minutes + 2}")
    while_it_runs(cluster, run, lambda: cluster.states(run.jobs[0])[0].restarts > 0, "the requeue")
    cluster.slurm("scontrol", "update", f"JobId={run.jobs[0]}", "TimeLimit=60")
    (state,) = cluster.end(run, LIMIT_S)
    print(run.timings())
    assert (state.state, state.exit_code, state.restarts) == ("COMPLETED", "0:0", 1), run.log
    (asked,), (resumed,) = run.events("stop_asked"), run.events("resume")
    assert asked["by"] == "the scheduler's notice"
    steps = [event["step"] for event in run.events("commit") if asked["ts"] <= event["ts"] <= resumed["ts"]]
    assert steps[-1:] == [resumed["step"]], "it goes on from the commit that the notice asked for"
    assert (run.result["status"], run.result["step"]) == ("success", 60)
    assert equals_its_replay(cluster, run)


@pytest.mark.parametrize("dead", ["engines", "head"])
def test_a_node_dies(cluster: Cluster, runs: Path, dead: str) -> None:
    """Of the engines' node the head tells, of the head's node Slurm itself: requeued on other nodes either way."""
    run = cluster.launch(runs, f"dies-{dead}", *ALONE, *SIX_STEPS, *TWO_NODES)
    after_steps(cluster, run, 2)
    node = "n2" if dead == "engines" else "n1"
    cluster.node("kill-node", node)
    try:
        (state,) = cluster.end(run, LIMIT_S)
    finally:
        cluster.node("start-node", node)
    print(run.timings())
    assert (state.state, state.exit_code) == ("COMPLETED", "0:0"), run.log
    assert state.restarts == 1
    assert bool(run.events("node_lost")) == (dead == "engines")
    assert node not in cluster.slurm("scontrol", "show", "hostnames", state.nodes).split()
    assert (run.result["status"], run.result["step"]) == ("success", 6)
    assert equals_its_replay(cluster, run)


def test_an_array_of_three_seeds(cluster: Cluster, runs: Path) -> None:
    run = cluster.launch(runs, "seeds", *ALONE, "budget.cycle_steps=2", "launch.slurm.sweep={seed: [1, 2, 3]}")
    states = cluster.end(run, LIMIT_S)
    assert [state.state for state in states] == ["COMPLETED"] * 3, run.log
    each = [RealRun(RunDir(runs / f"seeds-seed{seed}")) for seed in (1, 2, 3)]
    assert [one.result["status"] for one in each] == ["success"] * 3
    assert len({tuple(record["accuracy"] for record in one.records) + tuple(
        record["mean_tokens"] for record in one.records) for one in each}) == 3, "three seeds, three courses"


def test_a_chain_of_two(cluster: Cluster, runs: Path) -> None:
    """The first gets notice and has no requeue left; the second goes on where it stopped."""
    run = cluster.launch(runs, "chain", *ALONE, "launch.slurm.chain=2", "launch.slurm.retries=0")
    first, second = run.jobs
    after_steps(cluster, run, 2)
    assert cluster.states(second)[0].state == "PENDING"
    cluster.slurm("scancel", "--signal=USR1", "--batch", first)
    (one,), (other,) = cluster.end(run, LIMIT_S, first), cluster.end(run, LIMIT_S, second)
    assert (one.state, one.exit_code) == ("FAILED", "130:0"), run.log
    assert (other.state, other.exit_code) == ("COMPLETED", "0:0"), run.log
    assert "none is left" in run.log
    assert run.events("resume")[0]["step"] >= 2
    assert run.result["status"] == "success"
