"""A small study with real engines and learners: killed in the middle, gone on with, gathered; nothing is left."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from csv_rows import read_table
from engine_fleet import wait_until
from process_table import Watch

from siri_megatron.errors import ConfigError
from siri_megatron.files import read_json
from siri_megatron.paths import RunDir
from siri_megatron.study.plan import load_plan
from siri_megatron.study.runner import run_study

pytestmark = pytest.mark.engine
CONFIGS = Path("configs").resolve()
END_S = 400.0
PLAN = {
    "name": "small", "kind": "exploratory", "config": str(CONFIGS / "tiny.yaml"),
    "warm_starts": {"path": str(CONFIGS / "models/tiny-digits")}, "seeds": [7],
    "settings": {"learner": {"pp": 1}, "engines": {"in_process": True, "max_num_seqs": 32, "kv_cache_gib": 0.03125},
                 "budget": {"cycle_steps": 2, "cycles": 1}, "rollout": {"prompts_per_step": 2, "samples_per_prompt": 4},
                 "evaluation": {"problems": 8}},
    "arms": {"fixed": {"budget": {"schedule": "constant"}}, "siri": {}}}


def start(place: Path) -> subprocess.Popen[bytes]:
    """`siri study` on one core; what it prints goes to `log`."""
    with (place / "log").open("ab") as log:
        return subprocess.Popen(
            ["taskset", "-c", str(max(os.sched_getaffinity(0))), sys.executable, "-m", "siri_megatron.cli", "study",
             "plan.yaml"], cwd=place, stdout=log, stderr=subprocess.STDOUT)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of a study that was killed in its second run, and then went on."""
    place = tmp_path_factory.mktemp("study")
    (place / "plan.yaml").write_text(yaml.safe_dump(PLAN))
    runs = place / "runs/study/small"
    process = start(place)
    watch = Watch(process.pid)
    wait_until(lambda: process.poll() is not None or any((runs / "siri-7/ledger").glob("step-*")), END_S,
               "the second run to sample", every_s=0.05)
    assert process.poll() is None, (place / "log").read_text()
    process.send_signal(signal.SIGKILL)
    process.wait()
    wait_until(lambda: not watch.left(), 40, "engine and run to end with a study that is killed")
    watch.close()
    process = start(place)
    assert process.wait(END_S) == 0, (place / "log").read_text()
    return place


def test_goes_on_where_it_was_killed(place: Path) -> None:
    said = (place / "log").read_text()
    assert "0 of 2 jobs are done" in said
    assert "1 of 2 jobs are done" in said
    for name in ("fixed-7", "siri-7"):
        assert (read_json(RunDir(place / "runs/study/small" / name).result) or {})["status"] == "success"


def test_tables_are_written(place: Path) -> None:
    rows = read_table(place / "runs/study/small/evaluations.csv")
    assert [(row["arm"], row["step"]) for row in rows] == [(arm, step) for arm in ("fixed", "siri")
                                                           for step in ("0", "1", "2")]
    first = [row for row in rows if row["step"] == "0"]
    assert first[0]["accuracy"] == first[1]["accuracy"], "the arms of a seed start from one model"
    assert [row["cap"] for row in read_table(place / "runs/study/small/steps.csv")] == ["128", "128", "48", "128"]


def test_one_plan_a_directory(place: Path, tmp_path: Path) -> None:
    (tmp_path / "other.yaml").write_text(yaml.safe_dump(PLAN | {"seeds": [8]}))
    with pytest.raises(ConfigError, match="remove that directory"):
        run_study(load_plan(tmp_path / "other.yaml"), place / "runs/study/small", [0], print)
