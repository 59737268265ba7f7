from __future__ import annotations

import re

import numpy as np
import pytest

from siri_megatron.observe.jsonl import read
from siri_megatron.observe.metrics import METRICS, MetricsWriter, check, markdown, truncate_after

PROMISED = [
    "step", "phase", "cycle", "cap", "cap_version", "accuracy", "accuracy_untruncated", "truncated",
    "mean_tokens", "p50_tokens", "p90_tokens", "failed_verifications", "all_wrong_groups", "all_right_groups",
    "samples", "tokens", "prompt_tokens", "budget_accuracy", "loss", "grad_norm", "lr", "entropy",
    "clip_fraction", "ratio_mean", "mismatch_mean_abs", "mismatch_max_abs", "mismatch_kl", "ess", "train_tokens",
    "micro_batches", "optimizer_steps", "capacity", "fill", "shapes", "dropped_groups", "weight_version",
    "generation_s", "verification_s", "planning_s", "training_s", "push_s", "commit_s", "evaluation_s",
    "export_s", "other_s", "step_s", "generation_tokens_per_s", "training_tokens_per_s", "reused",
]


@pytest.fixture
def path(tmp_path):
    return tmp_path / "metrics.jsonl"


def test_the_promised_keys_are_documented():
    assert set(PROMISED) <= set(METRICS)
    assert all(metric.doc and "\n" not in metric.doc and "|" not in metric.unit for metric in METRICS.values())
    assert all(f"| `{key}` |" in markdown() for key in PROMISED)
    # A bar within a cell would make a column of its own.
    assert {len(re.split(r"(?<!\\)\|", line)) for line in markdown().splitlines()} == {5}


def test_documented(path):
    writer = MetricsWriter(path)
    writer.write({"step": 0, "phase": "compression", "accuracy": np.float32(0.5), "reused": False, "entropy": None,
                  "budget_accuracy": {"32": 0.25, 48: 1}, "loss": float("nan")})
    with pytest.raises(ValueError, match=r"'accurracy'.*undocumented"):
        writer.write({"step": 1, "accurracy": 0.5})
    assert read(path) == [{"step": 0, "phase": "compression", "accuracy": 0.5, "reused": False, "entropy": None,
                           "budget_accuracy": {"32": 0.25, "48": 1}, "loss": None}]


@pytest.mark.parametrize("wrong", [{"cap": "48"}, {"cap": True}, {"phase": 1}, {"reused": 1}, {"budget_accuracy": 0.5},
                                   {"budget_accuracy": {"32": "much"}}, {"loss": [1.0]}])
def test_values_of_another_kind_are_refused(wrong):
    with pytest.raises(ValueError, match="wrong kind"):
        check({"step": 0, **wrong})


def test_a_record_needs_its_step():
    with pytest.raises(ValueError, match="needs its step"):
        check({"accuracy": 0.5})


def test_one_record_a_step(path):
    MetricsWriter(path).write({"step": 4})
    for writer in (MetricsWriter(path), MetricsWriter(path)):
        with pytest.raises(ValueError, match="step 4 comes after step 4"):
            writer.write({"step": 4})
    MetricsWriter(path).write({"step": 5})


@pytest.mark.parametrize(("step", "left"), [(-1, 0), (0, 1), (3, 4), (4, 5), (99, 5)])
def test_cut_is_exact(path, step, left):
    writer = MetricsWriter(path)
    for number in range(5):
        writer.write({"step": number, "accuracy": number / 7})
    whole = path.read_bytes().splitlines(keepends=True)
    with path.open("ab") as file:
        file.write(b'{"step": 5, "accu')
    assert truncate_after(path, step) == 5 - left
    assert path.read_bytes() == b"".join(whole[:left])
    MetricsWriter(path).write({"step": 6})
    assert len(read(path)) == left + 1


def test_what_is_no_record_is_cut(path):
    path.write_text('{"step": 0}\n{"cap": 48}\n{"step": null}\n{"step": 1}\n{"step": "2"}\n')
    assert truncate_after(path, 5) == 3
    assert read(path) == [{"step": 0}, {"step": 1}]


def test_cutting_nothing_makes_no_file(path):
    assert truncate_after(path, 3) == 0
    assert not path.exists()
