"""The page as a file: self-contained, nothing of a run in it as markup, of bounded size."""

from __future__ import annotations

import json
import re
from datetime import datetime
from html.parser import HTMLParser

import pytest
from report_runs import HOSTILE, evaluation, write_run

from siri_megatron.report.command import page_of
from siri_megatron.report.content import shown_figures
from siri_megatron.report.figures import MAKERS, figures, tables
from siri_megatron.report.page import SNIPPET, columns, javascript, page_data, policy, render, short
from siri_megatron.report.read import RunData, read_run

MARGIN = 60_000
"""Bytes of a page besides script library, data and styles."""


class Tags(HTMLParser):
    """Every tag with its attributes."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))


def tags(text: str):
    parser = Tags()
    parser.feed(text.replace(javascript(), ""))
    return parser.found


@pytest.fixture(scope="module")
def hostile(tmp_path_factory) -> RunData:
    paths = write_run(tmp_path_factory.mktemp("page") / "run", name=HOSTILE[0], model={"path": HOSTILE[0]})
    for number, text in enumerate(HOSTILE):
        one = evaluation(text, 0.5, 100, tiers={text: {"accuracy": 0.5, "mean_tokens": 1, "problems": 1}, "b": {
            "accuracy": 0.5, "mean_tokens": 1, "problems": 1}})
        one["examples"][0] |= {"prompt": text, "response": text * 3, "answer": text, "tier": text, "outcome": text}
        (paths.evaluations / f"x{number}.json").write_text(json.dumps(one))
    with paths.events.open("a") as file:
        file.writelines(json.dumps({"ts": 1.7e9, "kind": text, "step": 1, "message": text}) + "\n" for text in HOSTILE)
    return read_run(paths.root)


def test_self_contained(hostile):
    for tag, attributes in tags(render(page_of([hostile]))):
        assert tag not in ("iframe", "object", "embed", "base", "form")
        assert attributes.get("src") is None, (tag, attributes)
        href = attributes.get("href")
        assert href is None or href.startswith("#") or href == "data:,", (tag, attributes)


def test_only_our_scripts(hostile):
    page = render(page_of([hostile]))
    assert [attributes.get("type") for tag, attributes in tags(page) if tag == "script"] == [
        "application/json", None, None]
    said = re.search(r'Content-Security-Policy" content="([^"]*)"', page)[1].replace("&#39;", "'")
    scripts = re.findall(r"<script>(.*?)</script>", page, re.DOTALL)
    assert len(scripts) == 2
    assert said == policy(*scripts)
    assert "unsafe-eval" not in said
    assert said.startswith("default-src 'none'; script-src 'sha256-")


def test_a_changed_script_has_another_policy():
    """Negative control."""
    assert policy("a") != policy("b")


def test_data_is_text(hostile):
    page = page_of([hostile])
    assert "<" not in page_data(page)
    text = render(page)
    assert "<script>window.hacked" not in text
    assert "<img" not in text.replace(javascript(), "")
    assert text.encode()
    assert "49" not in re.findall(r"<h1>(.*?)</h1>", text, re.DOTALL)[0]


def test_templates_in_texts_are_not_filled_in(tmp_path):
    paths = write_run(tmp_path / "run", name=HOSTILE[4])
    assert "<h1>{{ 7 * 7 }} ${window.hacked = 3}</h1>" in render(page_of([read_run(paths.root)]))


@pytest.mark.parametrize("cycle_steps", [640, 2])
def test_size_is_bounded(tmp_path, cycle_steps):
    """A run of 2,000 steps makes a page a few times larger than one of 40, whatever its phases."""
    long = page_of([read_run(write_run(tmp_path / "long", steps=2000, cycle_steps=cycle_steps).root)])
    assert len(page_data(long)) < 700_000
    assert len(render(long)) < len(page_data(long)) + len(javascript()) + MARGIN


def test_megabytes_of_text_are_bounded(tmp_path):
    paths = write_run(tmp_path / "run")
    for name in ("start", "iter1-compressed"):
        one = evaluation(name, 0.5, 100)
        for example in one["examples"]:
            example["response"] = "x" * 3_000_000
        (paths.evaluations / f"{name}.json").write_text(json.dumps(one))
    assert len(page_data(page_of([read_run(paths.root)]))) < 400_000


def test_every_figure_of_a_full_run(tmp_path):
    run = read_run(write_run(tmp_path / "run").root)
    assert len(figures(tables(run))) == len(MAKERS)
    assert [figure.name for figure in shown_figures(page_of([run]))].count("pareto") == 1


def test_figures_without_anything_to_show():
    assert figures(tables(RunData("empty", None))) == []


def test_a_run_without_evaluations(tmp_path):
    run = read_run(write_run(tmp_path / "run", evaluations=0).root)
    names = {figure.name for figure in shown_figures(page_of([run]))}
    assert "lengths" in names
    assert not names & {"pareto", "budgets", "tiers"}


def test_the_lead_says_what_happened(tmp_path):
    text = render(page_of([read_run(write_run(tmp_path / "run").root)]), datetime(2026, 1, 2, 3, 4))
    assert re.search(r"From start to iter1-expanded, accuracy on 200 held-out problems rose from \d+\.\d% to \d+\.\d%, "
                     r"while the mean answer went from [\d,.]+ to [\d.]+ tokens \(−4\d%\)\.", text)
    assert "2026-01-02 03:04" in text


def test_numbers_are_short():
    assert short(0.123456789) == 0.123457
    assert short(3.0) == 3
    assert short(float("inf")) is None
    assert short("text") == "text"
    assert columns([{"a": 1.5}, {"b": "x"}]) == {"length": 2, "columns": {"a": [1.5, None], "b": [None, "x"]}}


def test_the_library_is_bundled_once(tmp_path, monkeypatch):
    """In the user's cache, by version; without one to write to it is made each time."""
    import vl_convert

    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    made = javascript.__wrapped__()
    assert "</script" not in made
    assert SNIPPET.removesuffix(";").split(" = ")[0] in made
    with monkeypatch.context() as without:
        without.setattr(vl_convert, "javascript_bundle", None)
        assert javascript.__wrapped__() == made
        without.setattr(vl_convert, "__version__", "0")
        with pytest.raises(TypeError):
            javascript.__wrapped__()
    (tmp_path / "file").touch()
    monkeypatch.setenv("HOME", str(tmp_path / "file"))
    monkeypatch.setattr(vl_convert, "javascript_bundle", lambda snippet: f"made again, {snippet}")
    assert javascript.__wrapped__() == f"made again, {SNIPPET}"
