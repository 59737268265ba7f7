"""The benchmark of the plan finds a plan right that is right, and wrong one that is wrong."""

from __future__ import annotations

import argparse
import importlib.util
import json
import sys
from pathlib import Path

import pytest
from made_run import write_run

from siri_megatron import config as configs
from siri_megatron.observe import jsonl
from siri_megatron.paths import RunDir

REPO = Path(__file__).resolve().parents[2]


@pytest.fixture
def tool(monkeypatch: pytest.MonkeyPatch):
    spec = importlib.util.spec_from_file_location("bench_plan", REPO / "tools" / "bench" / "plan.py")
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "bench_plan", module)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def run(tmp_path: Path) -> Path:
    configs.save(configs.load(REPO / "configs" / "tiny.yaml", [
        f"runs_dir={tmp_path}", f"model.path={REPO}/configs/models/tiny-digits", "budget.l_min=16", "budget.l_max=64",
        "budget.cycle_steps=8", "rollout.prompts_per_step=8", "rollout.samples_per_prompt=4",
        "rollout.budget_grid=[16,64]"]), tmp_path / "config.yaml")
    return write_run(tmp_path / "config.yaml", steps=24)


def main(tool, run: Path) -> int:
    return tool.main(argparse.Namespace(run=run, steps=(None, None), config=None))


def test_right(tool, run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(tool, run) == 0
    text = capsys.readouterr().out
    assert all(part in text for part in tool.PARTS)
    assert [line.startswith("step: off by ") for line in text.splitlines()].count(True) == 2
    assert ("given: odd steps" in text, "ahead: the second half" in text) == (True, True)


def test_negative_control(tool, run: Path) -> None:
    paths = RunDir(run)
    records = jsonl.read(paths.metrics)
    for record in records[1::2]:
        record["generation_s"] *= 2
        record["training_s"] *= 2
    paths.metrics.write_text("".join(json.dumps(record) + "\n" for record in records))
    assert main(tool, run) >= 1
