"""Reading run directories that are torn, partial, of another version, or hostile."""

from __future__ import annotations

import json

import pytest
from report_runs import HOSTILE, evaluation, write_run

from siri_megatron.errors import DataError
from siri_megatron.paths import RunDir
from siri_megatron.report.read import LONGEST_NAME, read_run


@pytest.fixture
def paths(tmp_path):
    return write_run(tmp_path / "run")


def test_a_whole_run(paths):
    run = read_run(paths.root)
    assert (run.name, len(run.records), len(run.evaluations), run.notes) == ("run", 40, 3, [])
    assert run.setting("budget.l_min") == 512
    assert run.setting("budget.nothing", 7) == 7
    assert run.setting("name.below") is None


def test_no_run_directory(tmp_path):
    with pytest.raises(DataError, match="is no run directory"):
        read_run(tmp_path)
    with pytest.raises(DataError, match="is no run directory"):
        read_run(tmp_path / "missing")


@pytest.mark.parametrize("missing", ["config", "metrics", "events", "evaluations", "spans", "result"])
def test_never_fails_on_a_part_that_is_missing(paths, missing):
    path = getattr(paths, missing)
    path.rename(path.with_name("elsewhere"))
    assert read_run(paths.root).root == paths.root


@pytest.mark.parametrize("broken", ["config", "metrics", "events", "result", "environment"])
@pytest.mark.parametrize("content", ["\x00\xff", "[1, 2", "null\n", '"text"\n', "3\n", "[]\n",
                                     '{"step": "x"}\n{"step": {}}\n'])
def test_never_fails_on_a_part_that_is_broken(paths, broken, content):
    getattr(paths, broken).write_text(content, encoding="latin-1")
    assert read_run(paths.root).root == paths.root


@pytest.mark.parametrize("content", [b"\xff\xfe", b"[1, 2", b"[]"])
def test_what_is_no_record_is_said(paths, content):
    paths.environment.write_bytes(content)
    assert read_run(paths.root).notes == [f"{paths.environment.name} cannot be read: it is torn, or holds no JSON "
                                          "mapping"]


def test_one_record_a_step(paths):
    with paths.metrics.open("a") as file:
        file.write(json.dumps({"step": 3, "accuracy": 0.125}) + "\n")
    run = read_run(paths.root)
    assert [record["step"] for record in run.records] == list(range(40))
    assert run.records[3]["accuracy"] == 0.125


def test_a_torn_line_is_skipped_and_said(paths):
    whole = paths.metrics.read_text().splitlines(keepends=True)
    paths.metrics.write_text("".join(whole[:10]) + whole[10][:50] + "\n" + "".join(whole[11:]) + whole[0][:70])
    run = read_run(paths.root)
    assert len(run.records) == 39
    assert run.notes == ["metrics.jsonl: 1 torn lines were skipped"]


def test_documented_only(paths):
    paths.metrics.write_text(json.dumps({"step": 0, "accuracy": "high", "cap": None, "unheard_of": 1, "loss": 1e999,
                                         "phase": 3, "reused": 1, "budget_accuracy": {"8": "x", "y": 1.0, "16": 0.5}})
                             .replace("Infinity", "1e999") + "\n")
    record, = read_run(paths.root).records
    assert record == {"step": 0, "accuracy": None, "cap": None, "loss": None, "phase": None, "reused": None,
                      "budget_accuracy": {8: None, 16: 0.5}}


@pytest.mark.parametrize("change", [{"budgets": 3}, {"budgets": {"x": {}}}, {"tiers": [1]}, {"examples": [1]},
                                    {"mean_tokens": None}, {"tag": None, "budgets": None}])
def test_a_broken_evaluation_is_left_out(paths, change):
    (paths.evaluations / "odd.json").write_text(json.dumps(evaluation("odd", 0.5, 100) | change))
    run = read_run(paths.root)
    assert len(run.evaluations) == 3
    assert run.notes[0].startswith("evaluations/odd.json was left out")


def test_names_are_short_and_visible(paths):
    for number, text in enumerate((*HOSTILE, "x" * 1_000_000)):
        (paths.evaluations / f"{number}.json").write_text(json.dumps(evaluation(text, 0.5, 100)))
    tags = [one["tag"] for one in read_run(paths.root).evaluations]
    assert len(tags) == 3 + len(HOSTILE) + 1
    assert max(map(len, tags)) < LONGEST_NAME + 50
    assert not any("\x00" in tag or "\u202e" in tag for tag in tags)


def test_a_run_that_is_going_on(tmp_path):
    paths = write_run(tmp_path / "run", verdict=False, evaluations=1)
    with paths.spans.joinpath("learner-0.jsonl").open("a") as file:
        file.write('{"process": "learner-0", "step": 40, "spans": [["gener')
    run = read_run(paths.root)
    assert run.result == {}
    assert len([line for line in run.spans if line["process"] == "learner-0"]) == 40


def test_an_evaluation_directory_alone(tmp_path):
    paths = RunDir(tmp_path / "eval")
    paths.evaluations.mkdir(parents=True)
    (paths.evaluations / "start.json").write_text(json.dumps(evaluation("start", 0.5, 100)))
    run = read_run(paths.root)
    assert (run.name, len(run.evaluations)) == ("eval", 1)
