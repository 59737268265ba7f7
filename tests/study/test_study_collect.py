"""The two tables of a study, against run directories whose figures are known."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from csv_rows import read_table
from test_study_plan import write

from siri_megatron.errors import DataError
from siri_megatron.paths import RunDir
from siri_megatron.study.collect import TRAINING_S, collect, write_table
from siri_megatron.study.plan import load_plan

STEPS = 4


def made(place: Path, name: str, *, steps: int = STEPS, status: str = "success") -> None:
    """A run of which step s sampled 100 + s tokens and took s seconds for each part of its training."""
    paths = RunDir(place / name)
    paths.evaluations.mkdir(parents=True)
    paths.config.write_text(f"name: {name}\n")
    records = [{"step": step, "cap": 64 - step, "tokens": 100 + step, "accuracy": 0.5, "evaluation_s": 7.0,
                **{key: float(step) for key in TRAINING_S}} for step in range(steps)]
    paths.metrics.write_text("".join(json.dumps(record) + "\n" for record in records))
    paths.result.write_text(json.dumps({"status": status, "steps": STEPS}))
    for step, tag in ((0, "start"), (2, "iter1-compressed"), (4, "iter1-expanded")):
        tier = {"accuracy": step / 8, "mean_tokens": 10.0 + step}
        (paths.evaluations / f"{tag}.json").write_text(json.dumps(
            {"tag": tag, "weight_version": str(step), "accuracy": step / 4, "mean_tokens": 20.5, "truncated": 0.0,
             "budgets": {"32": {"accuracy": step / 16}}, "tiers": {"k=9": tier}, "problems": 256, "samples": 1}))


@pytest.fixture
def place(tmp_path: Path) -> Path:
    for arm in ("fixed", "siri"):
        for seed in (1, 2):
            made(tmp_path / "runs", f"{arm}-{seed}")
    return tmp_path


def test_the_figures_up_to_an_evaluation_are_those_of_the_steps_before_it(place: Path) -> None:
    collect(load_plan(write(place)), place / "runs", place / "out")
    rows = read_table(place / "out/evaluations.csv")
    assert [(row["arm"], row["seed"], row["step"]) for row in rows[:4]] == [
        ("fixed", "1", "0"), ("fixed", "1", "2"), ("fixed", "1", "4"), ("fixed", "2", "0")]
    assert len(rows) == 4 * 3
    assert [float(row["sampled_tokens"]) for row in rows[:3]] == [0, 100 + 101, 100 + 101 + 102 + 103]
    assert [float(row["train_seconds"]) for row in rows[:3]] == [0, 5, 5 * (1 + 2 + 3)], "without evaluation"
    assert (rows[1]["accuracy"], rows[1]["acc@32"], rows[1]["acc:k=9"], rows[1]["tokens:k=9"]) == (
        "0.5", "0.125", "0.25", "12")


def test_a_row_for_every_step(place: Path) -> None:
    collect(load_plan(write(place)), place / "runs", place / "out")
    rows = read_table(place / "out/steps.csv")
    assert len(rows) == 4 * STEPS
    assert [row["cap"] for row in rows[:STEPS]] == ["64", "63", "62", "61"]
    assert rows[0]["entropy"] == "", "what a run did not measure stays empty"


@pytest.mark.parametrize("broken", [{"steps": 3}, {"status": "failed"}])
def test_a_run_that_is_not_whole_is_refused(place: Path, broken: dict[str, object]) -> None:
    made(place / "other", "fixed-1", **broken)  # type: ignore[arg-type]
    for name in ("fixed-2", "siri-1", "siri-2"):
        made(place / "other", name)
    with pytest.raises(DataError, match="fixed-1"):
        collect(load_plan(write(place)), place / "other", place / "out")
    assert not (place / "out").exists(), "nothing half-written"


def test_equal_figures_make_equal_files(tmp_path: Path) -> None:
    for name in "ab":
        write_table(tmp_path / name, [{"x": 0.1 + 0.2, "y": "with, comma"}, {"z": None, "x": 1}])
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes() == b'x,y,z\n0.3,"with, comma",\n1,,\n'
