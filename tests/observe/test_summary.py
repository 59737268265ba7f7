from __future__ import annotations

import json

import pytest

from siri_megatron.errors import DataError
from siri_megatron.observe.render import text
from siri_megatron.observe.summary import load_evaluations, siri_names, summary_table

TAGS = ["start", "iter1-compressed", "iter1-expanded", "iter2-compressed", "iter2-expanded", "iter10-compressed"]


def evaluation(tag, accuracy=0.5, tokens=60.0):
    return {"tag": tag, "weight_version": "0", "accuracy": accuracy, "accuracy_ci": [accuracy - 0.03, accuracy + 0.03],
            "mean_tokens": tokens, "mean_tokens_ci": [tokens - 1, tokens + 1], "truncated": 0.05, "problems": 256,
            "samples": 4,
            "budgets": {"128": {"accuracy": accuracy, "ci": [0, 1]}, "32": {"accuracy": 0.125, "ci": [0, 1]}}}


def test_in_the_order_of_training(tmp_path):
    for tag in ["own-tag", *reversed(TAGS)]:
        (tmp_path / f"{tag}.json").write_text(json.dumps(evaluation(tag)))
    assert [found["tag"] for found in load_evaluations(tmp_path)] == [*TAGS, "own-tag"]
    assert load_evaluations(tmp_path / "missing") == []


def test_stages_in_order(tmp_path):
    for tag in ("stage10", "stage2", "start", "stage1"):
        (tmp_path / f"{tag}.json").write_text(json.dumps(evaluation(tag)))
    assert [found["tag"] for found in load_evaluations(tmp_path)] == ["start", "stage1", "stage2", "stage10"]


def test_the_last_of_each_kind_has_the_paper_s_name():
    assert siri_names(TAGS) == {"iter10-compressed": "SIRI-low", "iter2-expanded": "SIRI-high"}
    assert siri_names(["start", "iter1-compressed"]) == {"iter1-compressed": "SIRI-low"}
    assert siri_names(["start", "iter1-compressed-again"]) == {}


def test_table_text():
    table = summary_table([evaluation("start"), evaluation("iter1-compressed", 0.6, 45.0),
                           evaluation("iter1-expanded", 0.7, 54.0)])
    rows = [line.split() for line in text(table).splitlines()]
    assert ["checkpoint", "accuracy", "tokens", "truncated", "@32", "@128"] in rows
    assert ["start", "50.0%", "±3.0", "60.0", "5.0%", "12.5%", "50.0%"] in rows
    assert ["iter1-compressed", "SIRI-low", "60.0%", "±3.0", "45.0", "-25%", "5.0%", "12.5%", "60.0%"] in rows
    assert ["iter1-expanded", "SIRI-high", "70.0%", "±3.0", "54.0", "-10%", "5.0%", "12.5%", "70.0%"] in rows
    assert max(map(len, text(table).splitlines())) < 100


def test_without_evaluations():
    assert "no evaluations" in text(summary_table([]))


@pytest.mark.parametrize(("content", "words"), [("{", "is not JSON"), ('{"tag": "x"}', "lacks"), ("[]", "lacks")])
def test_a_broken_file_is_named(tmp_path, content, words):
    (tmp_path / "start.json").write_text(content)
    with pytest.raises(DataError, match=rf"start\.json {words}"):
        load_evaluations(tmp_path)
