"""`siri report` as it is called."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from xml.etree import ElementTree

import pytest
from report_runs import write_run

from siri_megatron.cli import main
from siri_megatron.report.command import page_of
from siri_megatron.report.content import shown_figures
from siri_megatron.report.read import read_run


def test_one_run(tmp_path, capsys):
    paths = write_run(tmp_path / "run")
    assert main(["report", str(paths.root)]) == 0
    assert paths.report.read_text().startswith("<!DOCTYPE html>")
    assert json.loads(paths.trace.read_text())["traceEvents"]
    assert str(paths.report) in capsys.readouterr().out


def test_several_runs_and_a_place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("a", "b"):
        write_run(tmp_path / "runs" / name)
    assert main(["report", "a", "b"]) == 0
    assert "2 runs: a, b" in (tmp_path / "comparison.html").read_text()
    assert main(["report", "a", "--out", "deep/page.html"]) == 0
    assert (tmp_path / "deep" / "trace.json").exists()


def test_plots(tmp_path):
    paths = write_run(tmp_path / "run")
    assert main(["report", str(paths.root), "--plots", str(tmp_path / "plots")]) == 0
    names = {figure.name for figure in shown_figures(page_of([read_run(paths.root)]))}
    for name in names:
        assert ElementTree.parse(tmp_path / "plots" / f"{name}.svg").getroot().tag.endswith("svg")
        assert (tmp_path / "plots" / f"{name}.png").read_bytes().startswith(b"\x89PNG")
    with (tmp_path / "plots" / "steps.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [float(row["step"]) for row in rows] == list(range(40))
    assert float(rows[3]["accuracy"]) == read_run(paths.root).records[3]["accuracy"]


def test_the_step_that_is_asked_for_comes_first(tmp_path):
    paths = write_run(tmp_path / "run")
    assert main(["report", str(paths.root), "--step", "17"]) == 0
    assert '"value":"step 17 (chosen)"' in paths.report.read_text()


@pytest.mark.parametrize(("arguments", "said"), [
    (["nowhere"], "is neither a directory nor in runs/: "), (["."], "is no run directory"),
    (["a", "b", "--step", "3"], "a timeline is of one run")])
def test_refused(tmp_path, monkeypatch, capsys, arguments, said):
    monkeypatch.chdir(tmp_path)
    write_run(tmp_path / "a")
    write_run(tmp_path / "b")
    assert main(["report", *arguments]) == 2
    assert said.rstrip(": ") in capsys.readouterr().err


def test_without_torch(tmp_path):
    """As on a laptop: torch, megatron, vLLM and transformers cannot be imported."""
    paths = write_run(tmp_path / "run")
    code = ("import sys; sys.modules.update(dict.fromkeys(('torch', 'megatron', 'vllm', 'transformers'))); "
            f"from siri_megatron.cli import main; sys.exit(main(['report', {str(paths.root)!r}]))")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert paths.report.exists()
