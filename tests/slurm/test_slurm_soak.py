"""What takes minutes on a real Slurm: time limits, dead nodes, arrays, chains. Timings are printed."""

from __future__ import annotations

from pathlib import Path

import pytest
from real_run import RealRun, same_weights
from slurm_cluster import SMALL, TWO_NODES, Cluster, Launched, wait_for

from siri_megatron.paths import RunDir

pytestmark = [pytest.mark.engine, pytest.mark.soak]
EIGHT_STEPS = (*SMALL, "budget.cycle_steps=8")


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


def test_time_limit_requeue_resume(cluster: Cluster, runs: Path) -> None:
    """The notice comes while the run trains: it commits, requeues itself, and ends as if nothing had been."""
    run = cluster.launch(runs, "limited", *TWO_NODES, "evaluation.problems=24", "checkpoint.every_steps=24",
                         "launch.slurm.time_limit=0:03:00", "launch.slurm.signal_lead_s=50")
    (state,) = cluster.end(run, 1200)
    print(run.timings())
    assert (state.state, state.exit_code) == ("COMPLETED", "0:0"), run.log
    assert state.restarts >= 1
    asked = run.events("stop_asked")
    assert [event["by"] for event in asked] == ["the scheduler's notice"] * state.restarts
    assert [event["step"] % 24 != 0 for event in run.events("resume")], "from the commit that the notice asked for"
    assert (run.result["status"], run.result["step"]) == ("success", 72)
    assert equals_its_replay(cluster, run)


@pytest.mark.parametrize("dead", ["engines", "head"])
def test_a_node_dies(cluster: Cluster, runs: Path, dead: str) -> None:
    """Of the engines' node the head tells, of the head's node Slurm itself: requeued on other nodes either way."""
    run = cluster.launch(runs, f"dies-{dead}", *EIGHT_STEPS, *TWO_NODES)
    wait_for(lambda: run.steps >= 3, 300, lambda: f"three steps:\n{run.log[-3000:]}")
    node = "n2" if dead == "engines" else "n1"
    cluster.node("kill-node", node)
    try:
        (state,) = cluster.end(run, 600)
    finally:
        cluster.node("start-node", node)
    print(run.timings())
    assert (state.state, state.exit_code) == ("COMPLETED", "0:0"), run.log
    assert state.restarts == 1
    assert bool(run.events("node_lost")) == (dead == "engines")
    assert node not in cluster.slurm("scontrol", "show", "hostnames", state.nodes).split()
    assert (run.result["status"], run.result["step"]) == ("success", 8)
    assert equals_its_replay(cluster, run)


def test_an_array_of_three_seeds(cluster: Cluster, runs: Path) -> None:
    run = cluster.launch(runs, "seeds", *SMALL, "engines.count=1", "learner.pp=1", "checkpoint.timeout_s=20",
                         "launch.slurm.sweep={seed: [1, 2, 3]}")
    states = cluster.end(run, 900)
    assert [state.state for state in states] == ["COMPLETED"] * 3, run.log
    each = [RealRun(RunDir(runs / f"seeds-seed{seed}")) for seed in (1, 2, 3)]
    assert [one.result["status"] for one in each] == ["success"] * 3
    assert len({tuple(record["accuracy"] for record in one.records) + tuple(
        record["mean_tokens"] for record in one.records) for one in each}) == 3, "three seeds, three courses"


def test_a_chain_of_two(cluster: Cluster, runs: Path) -> None:
    """The first gets notice and has no requeue left; the second goes on where it stopped."""
    run = cluster.launch(runs, "chain", *EIGHT_STEPS, "engines.count=1", "learner.pp=1", "checkpoint.timeout_s=20",
                         "launch.slurm.chain=2", "launch.slurm.retries=0", "checkpoint.every_steps=8")
    first, second = run.jobs
    wait_for(lambda: run.steps >= 2, 300, lambda: f"two steps:\n{run.log[-3000:]}")
    assert cluster.states(second)[0].state == "PENDING"
    cluster.slurm("scancel", "--signal=USR1", "--batch", first)
    (one,), (other,) = cluster.end(run, 120, first), cluster.end(run, 300, second)
    assert (one.state, one.exit_code) == ("FAILED", "130:0"), run.log
    assert (other.state, other.exit_code) == ("COMPLETED", "0:0"), run.log
    assert "none is left" in run.log
    assert run.events("resume")[0]["step"] >= 2
    assert run.result["status"] == "success"
