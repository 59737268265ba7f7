"""nemo-run experiments with real engines on a real Slurm: a run over two nodes, schedules x seeds, a chain."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from nemorun import NemoRun, options
from real_run import RealRun, same_weights
from safetensors.torch import load_file
from slurm_cluster import SMALL, TWO_NODES, Cluster, Launched
from test_nemo import SLURM, verdicts

from siri_megatron.config import load
from siri_megatron.paths import RunDir

pytestmark = [pytest.mark.engine, pytest.mark.soak]
DONE = ("SUCCEEDED", "success: every main process ended with 0")
LIMIT_S = 2400  # of an experiment; minutes on an idle machine
ONE_ENGINE = (*SMALL, "budget.cycle_steps=2", "engines.count=1", "learner.pp=1", "checkpoint.timeout_s=20")


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("nemo-soak")


@pytest.fixture(scope="module")
def nemo(cluster: Cluster, runs: Path) -> NemoRun:
    return NemoRun(cluster, runs / "home")


def test_two_nodes_train_and_export(nemo: NemoRun, runs: Path) -> None:
    said = nemo.run("train", *options(runs, "two", (*SMALL, *TWO_NODES)), *SLURM, seconds=LIMIT_S)
    assert verdicts(said)["two"] == DONE, said
    run = Launched(RunDir(runs / "two"), (), RunDir(runs / "two").job.stat().st_mtime)
    print(run.timings())
    assert (run.paths.export / "iter1-expanded" / "model.safetensors").is_file()
    assert nemo.cluster.job_processes() == []


def test_this_machine_trains_and_exports(nemo: NemoRun, runs: Path) -> None:
    said = nemo.run("train", *options(runs, "here", ONE_ENGINE), seconds=LIMIT_S)
    assert verdicts(said)["here"] == DONE, said
    assert (runs / "here" / "export" / "iter1-expanded" / "model.safetensors").is_file()


def test_schedules_and_seeds_end_in_one_comparison(nemo: NemoRun, runs: Path) -> None:
    """One after another: four runs at once are too many for two cores."""
    said = nemo.run("sweep", *options(runs, "four", ONE_ENGINE), "seeds=[1,2]", "schedules=['cosine','linear']",
                    seconds=LIMIT_S)
    names = [f"four-schedule{schedule}-seed{seed}" for schedule in ("cosine", "linear") for seed in (1, 2)]
    assert verdicts(said) == dict.fromkeys(names, DONE) | {"comparison": ("SUCCEEDED", "succeeded")}, said
    texts = [path.read_text() for path in (runs / "four-comparison").glob("*.csv")]
    assert any(all(name in text for name in names) for text in texts)


def test_a_chain(nemo: NemoRun, runs: Path) -> None:
    short = ("stages=['stages=[{teacher: clean, steps: 4, tokens_per_step: 1024}]', 'learner.pp=1']")
    said = nemo.run("chain", *options(runs, "all", ONE_ENGINE), short, *SLURM, seconds=LIMIT_S)
    told = verdicts(said)
    assert list(told) == ["convert", "warm-start", "all", "evaluate", "export"]
    assert {state for state, _ in told.values()} == {"SUCCEEDED"}, said
    paths = RunDir(runs / "all")
    assert same_weights(RealRun(paths).weights(), load_file(runs / "all-hf" / "model.safetensors"))
    assert json.loads((runs / "all-eval-iter1-expanded" / "result.json").read_text())["status"] == "success"
    assert load(paths.config).model.path == runs / "all-warm", "it trains what the warm start has left"
