"""The comparison page: what its tables say."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest
from report_runs import write_run

from siri_megatron.report.compare import by_question
from siri_megatron.report.content import shown_figures
from siri_megatron.report.overlay import comparison_page
from siri_megatron.report.page import page_data, render
from siri_megatron.report.read import RunData, read_run


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> list[RunData]:
    place = tmp_path_factory.mktemp("overlay")
    return [read_run(write_run(place / f"run{seed}", seed=seed).root) for seed in range(3)]


def table(page, title: str):
    return next(table for section in page.sections for table in section.tables if table.title.startswith(title))


def test_differences_are_to_the_first_run(runs):
    rows = table(comparison_page(runs), "Last evaluation").rows
    assert [row[0] for row in rows] == ["run0", "run1", "run2"]
    assert rows[0][4] == rows[0][6] == ""
    expected = by_question(runs[0].evaluations[-1], runs[2].evaluations[-1], "accuracy")
    value, low, high = (float(text) for text in re.findall(r"[+-][\d.]+", rows[2][4].replace("−", "-")))
    assert [value, low, high] == [round(100 * one, 1) for one in (expected.value, expected.low, expected.high)]


def test_two_runs_in_a_sentence(runs):
    lead = comparison_page(runs[:2]).lead
    assert lead.startswith("On the same 200 questions run1 differs from run0 by ")
    assert comparison_page(runs).lead == ""
    unpaired = replace(runs[1], evaluations=[{**one, "questions": {}} for one in runs[1].evaluations])
    assert comparison_page([runs[0], unpaired]).lead == ""


def test_runs_without_evaluations_or_steps(runs):
    page = comparison_page([replace(runs[0], evaluations=[]), replace(runs[1], records=[]), RunData("empty", None)])
    rows = table(page, "Last evaluation").rows
    assert rows[0][1] == "no evaluation"
    assert rows[1][3]
    assert render(page)
    nothing = comparison_page([RunData("a", None), RunData("b", None)])
    assert shown_figures(nothing) == []
    assert render(nothing)


def test_equal_names_are_told_apart(runs):
    page = comparison_page([runs[0], runs[0]])
    assert [row[0] for row in table(page, "Last evaluation").rows] == ["run0", "run0 (2)"]
    assert "+0.0 points [+0.0, +0.0]" in table(page, "Last evaluation").rows[1][4]


def test_arms(tmp_path):
    made = [read_run(write_run(tmp_path / f"{arm}{seed}", seed=seed, arm=arm).root)
            for arm in ("a", "b") for seed in range(5)]
    rows = table(comparison_page(made), "Arms").rows
    assert [row[:2] for row in rows] == [["a0", "5"], ["b0", "5"]]
    assert rows[1][3] == "+0.0 points [+0.0, +0.0]"  # the made runs depend on their seed alone
    assert sorted(table(comparison_page(made), "Settings").rows) == [
        ["arm", *"aaaaabbbbb"], ["seed", *"0123401234"]]


def test_one_arm_is_no_comparison(runs):
    with pytest.raises(StopIteration):
        table(comparison_page(runs), "Arms")


def test_many_long_runs_are_bounded(tmp_path):
    made = [read_run(write_run(tmp_path / f"run{seed}", steps=2000, seed=seed).root) for seed in range(3)]
    assert len(page_data(comparison_page(made))) < 3 * 60_000
