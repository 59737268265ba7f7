"""The plans in docs/planning.md are what `siri plan` prints."""

import importlib.util
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "tools" / "plans.py"


@pytest.fixture
def tool(monkeypatch):
    spec = importlib.util.spec_from_file_location("plans", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "plans", module)
    monkeypatch.chdir(SCRIPT.parents[1])
    spec.loader.exec_module(module)
    return module


def test_plans_are_up_to_date(tool):
    assert tool.main(check=True) == 0, "run `python tools/plans.py`"
    assert tool.PAGE.read_text().count("\n$ siri plan ") >= 5


def test_negative_control_another_output_is_seen(tool, tmp_path, monkeypatch):
    other = tmp_path / "planning.md"
    other.write_text(tool.PAGE.read_text().replace("GPU-hours; each cycle", "GPU-hours; every cycle"))
    monkeypatch.setattr(tool, "PAGE", other)
    assert tool.main(check=True) == 1


def test_measured_blocks_stay(tool):
    page = "```\n$ siri plan nothing.yaml  (measured)\nold\n```\n"
    assert tool.written(page) == page
