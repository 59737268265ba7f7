"""The report that a real run drew of itself, in a real browser, and its trace."""

from __future__ import annotations

import json

import pytest
from browser import Browser
from real_run import RealRun

from siri_megatron.files import read_json
from siri_megatron.observe.spans import read_spans
from siri_megatron.report.command import page_of
from siri_megatron.report.content import shown_figures
from siri_megatron.report.read import read_run

pytestmark = pytest.mark.engine
DRAWN = "[...document.querySelectorAll('.plot')].filter((one) => one.querySelector('svg path, svg rect')).length"


def test_every_figure_of_a_real_run_is_drawn(resumed: RealRun, browser: Browser):
    page = page_of([read_run(resumed.paths.root)])
    names = {figure.name for figure in shown_figures(page)}
    assert {"lengths", "accuracy", "pareto", "budgets", "surface", "tiers", "mismatch", "stages", "timeline"} <= names
    browser.open(resumed.paths.report)
    assert browser.errors == []
    assert browser.requests == [resumed.paths.report.as_uri()]
    assert browser.value(DRAWN) == len(names)
    sources = {sample["source"].partition(",")[0] for sample in page.samples}
    assert sources == {"held-out", "training"}


def test_the_spans_are_those_of_the_metrics(resumed: RealRun):
    """Rank 0's spans of a step add up to the stage's seconds in the metrics, also over the kill."""
    lines = {line["step"]: line["spans"] for line in read_spans(resumed.paths.spans) if line["process"] == "learner-0"}
    for record in resumed.records:
        for stage in ("planning", "training", "push"):
            spent = sum(span[2] for span in lines[record["step"]] if span[0] == stage)
            assert spent == pytest.approx(record[f"{stage}_s"], abs=1e-3)


def test_every_process_has_spans(resumed: RealRun):
    processes = {line["process"] for line in read_spans(resumed.paths.spans)}
    assert processes == {"learner-0", "learner-1", "collector", "engine-0"}
    events = json.loads(resumed.paths.trace.read_text())["traceEvents"]
    named = {event["args"]["name"] for event in events if event["name"] == "process_name"}
    assert named == {"schedule", *processes}


def test_evaluations_can_be_paired(resumed: RealRun):
    start, end = (read_json(resumed.paths.evaluations / f"{tag}.json") for tag in ("start", "iter1-expanded"))
    assert start["questions"]["fingerprint"] == end["questions"]["fingerprint"]
    assert len(start["questions"]["accuracy"]) == start["problems"]
    assert sum(end["questions"]["tokens"]) == pytest.approx(end["tokens"] / end["samples"])


def test_the_environment_is_known(resumed: RealRun):
    assert {"torch", "megatron-core"} <= read_json(resumed.paths.environment)["packages"].keys()
