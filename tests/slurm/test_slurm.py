"""Runs over two nodes of a real Slurm: one that trains to its end, and the ways in which one is refused or fails."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from slurm_cluster import SMALL, TWO_NODES, Cluster, python, wait_for

from siri_megatron.observe import jsonl


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("runs")


@pytest.mark.engine
def test_two_nodes_train_and_export(cluster: Cluster, runs: Path) -> None:
    """Learners (PP2) on one node, two engines on the other, weights over gloo."""
    run = cluster.launch(runs, "two", *SMALL, *TWO_NODES)
    (state,) = cluster.end(run, 300)
    assert (state.state, state.exit_code) == ("COMPLETED", "0:0"), run.log
    assert (run.result["status"], run.result["step"], run.result["exit_code"]) == ("success", 4, 0)
    assert (run.paths.export / "iter1-expanded" / "model.safetensors").is_file()
    assert all(record["push_s"] > 0 for record in jsonl.read(run.paths.metrics))
    nodes = [json.loads(run.paths.node(1).read_text())]
    assert [(node["name"], len(node["ports"])) for node in nodes] == [("n2", 2)]
    assert cluster.job_processes() == []
    first_step = jsonl.read(run.paths.events)
    ready = next(event["ts"] for event in first_step if event["kind"] == "ready")
    print(f"\nsubmit to ready learners {ready - run.submitted:.1f} s")
    told = cluster.siri("launch", "status", str(run.paths.root))
    assert "COMPLETED" in told
    assert "success" in told
    assert "train success after 4 of 4 steps" in cluster.siri("launch", "logs", str(run.paths.root), "-n", "8")


@pytest.fixture
def loading(tmp_path: Path) -> str:
    """Engines that load for ever: the override that makes them."""
    return f"launch.engines.python={python(tmp_path / 'loading', 'exec sleep 600')}"


def test_a_learner_that_exits_with_3_fails_the_job(cluster: Cluster, runs: Path, tmp_path: Path, loading: str) -> None:
    """nemo-run reports such a job as SUCCEEDED when another component ends first."""
    dies = python(tmp_path / "dies", f'case "$*" in *"--rank 1 "*) sleep 1; exit 3 ;; esac\nexec {sys.executable} "$@"')
    run = cluster.launch(runs, "rank-dies", *SMALL, *TWO_NODES, "learner.pp=2", "launch.learner.nodes=2",
                         "launch.engines.nodes=2", loading, f"launch.learner.python={dies}")
    (state,) = cluster.end(run, 300)
    assert (state.state, state.exit_code) == ("FAILED", "3:0"), run.log
    failure = run.result["failures"][0]
    assert (failure["role"], failure["exit_status"], run.result["status"]) == ("learner-1", 3, "failed")
    assert "learner-1: ended with status 3" in run.result["reason"]
    assert "learner-1: ended with status 3" in run.log
    assert cluster.job_processes() == []


def test_too_few_gpus_are_refused_before_anything_starts(cluster: Cluster, runs: Path) -> None:
    """Slurm has eight GPUs a node here, and they are links to /dev/null."""
    run = cluster.launch(runs, "few-gpus", *SMALL, *TWO_NODES, "launch.learner.gpus_per_node=2",
                         "launch.engines.gpus_per_node=2")
    (state,) = cluster.end(run, 300)
    assert (state.state, state.exit_code) == ("FAILED", "2:0"), run.log
    assert "node 0 (n1) has 0 GPUs, the launch section needs 2 a node" in run.result["reason"]
    assert (run.result["status"], run.result["exit_code"]) == ("failed", 2)
    assert not run.paths.fleet.exists()
    assert not list(run.paths.logs.glob("engine-*"))


def test_cancel_leaves_no_process(cluster: Cluster, runs: Path, loading: str) -> None:
    run = cluster.launch(runs, "cancelled", *SMALL, *TWO_NODES, loading)
    wait_for(lambda: any("sleep 600" in line for line in cluster.job_processes()), 60, "the engines to be started")
    assert f"cancelled {run.jobs[0]}" in cluster.siri("launch", "cancel", str(run.paths.root))
    wait_for(lambda: not cluster.job_processes(), 20, lambda: f"no process of the job: {cluster.job_processes()}")
    assert cluster.states(run.jobs[0])[0].state == "CANCELLED"


def test_the_script_that_is_shown_is_the_one_that_is_submitted(cluster: Cluster, runs: Path) -> None:
    arguments = ("launch", "slurm", "configs/tiny.yaml", "name=dry", f"runs_dir={runs}", *TWO_NODES)
    shown = cluster.siri(*arguments, "--dry-run")
    assert not (runs / "dry").exists()
    cluster.siri(*arguments, "launch.slurm.directives=[--hold]")
    script = (runs / "dry" / "launch" / "job.sh").read_text()
    assert script.replace("#SBATCH --hold\n", "").strip() in shown
    cluster.siri("launch", "cancel", str(runs / "dry"))
