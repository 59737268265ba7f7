"""Sample rollouts: the invariants of report.rollouts."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from report_runs import evaluation, write_ledger_step, write_run

from siri_megatron.report.read import read_run
from siri_megatron.report.rollouts import ANSWERS, GROUPS, LEDGER_STEPS, LONGEST, examples, pick_groups, training

MODEL = Path(__file__).resolve().parents[2] / "configs" / "models" / "tiny-digits"


def test_same_prompts():
    rows = examples([evaluation(tag, 0.5, 100) for tag in ("start", "iter1-compressed", "iter1-expanded")])
    assert [row["prompt"] for row in rows] == [f"What is {number} + {number}?" for number in range(8)]
    assert {tuple(one["label"] for one in row["answers"]) for row in rows} == {
        ("start", "iter1-compressed", "iter1-expanded")}
    assert rows[3]["answers"][0]["response"] == "start: it is 6"


def test_bounded():
    many = [evaluation(f"iter{number}-expanded", 0.5, 100) for number in range(60)]
    many[0]["examples"][0]["response"] = "x" * 10_000_000
    rows = examples(many)
    labels = [one["label"] for one in rows[0]["answers"]]
    assert len(labels) == 15
    assert (labels[0], labels[-1]) == ("iter0-expanded", "iter59-expanded")
    assert len(json.dumps(rows)) < 15 * 8 * 200 + 2 * LONGEST


def test_wrong_ones_too():
    group = np.array([0, 0, 0, 0, 1, 1, 1, 1])
    outcome = np.array(["right"] * 4 + ["right", "right", "wrong", "failed"])
    assert pick_groups(group, outcome) == [[4, 6, 7], [0, 1, 2]]


def test_many_groups():
    outcome = np.array(["right", "wrong"] * 50)
    picked = pick_groups(np.repeat(np.arange(50), 2), outcome)
    assert len(picked) == GROUPS
    assert all(Counter(outcome[rows]) == {"right": 1, "wrong": 1} for rows in picked)


@pytest.fixture
def paths(tmp_path):
    paths = write_run(tmp_path / "run", model={"path": str(MODEL)})
    for step in range(7):
        write_ledger_step(paths, step)
    return paths


def test_training_rollouts_of_first_middle_and_last_step(paths):
    rows, notes = training(read_run(paths.root))
    assert notes == []
    assert list(dict.fromkeys(row["source"] for row in rows)) == [f"training, step {step}" for step in (0, 3, 6)]
    assert len(rows) <= LEDGER_STEPS * GROUPS
    assert all(len(row["answers"]) == ANSWERS for row in rows)
    assert {one["outcome"] for one in rows[0]["answers"]} == {"right", "wrong", "failed"}
    assert all(row["prompt"] for row in rows)


def test_a_damaged_step_is_noted(paths):
    data = paths.ledger / "step-000003" / "rollouts.arrow"
    data.write_bytes(data.read_bytes()[:-40])
    rows, notes = training(read_run(paths.root))
    assert {row["source"] for row in rows} == {"training, step 0", "training, step 6"}
    assert len(notes) == 1
    assert notes[0].startswith("ledger step 3 cannot be shown")


def test_without_a_tokenizer_it_is_noted(tmp_path):
    paths = write_run(tmp_path / "run")
    write_ledger_step(paths, 0)
    assert training(read_run(paths.root)) == (
        [], ["training rollouts are not shown: no tokenizer.json in the run's exports or in model.path"])


def test_a_broken_tokenizer_is_like_none(tmp_path):
    paths = write_run(tmp_path / "run")
    write_ledger_step(paths, 0)
    broken = paths.export / "iter1-expanded" / "tokenizer.json"
    broken.parent.mkdir(parents=True)
    broken.write_text("{}")
    assert training(read_run(paths.root))[0] == []


def test_without_a_ledger(tmp_path):
    assert training(read_run(write_run(tmp_path / "run").root)) == ([], [])
