"""The budget part of `--dry-run`."""

from __future__ import annotations

from typing import Any

from siri_megatron.config import RunConfig, validate
from siri_megatron.launch.describe import describe_budget, describe_method


def config(**budget: Any) -> RunConfig:
    plan = {"l_min": 48, "l_max": 128, "cycle_steps": 24, "cycles": 3} | budget
    return validate({"name": "r", "model": {"path": "m"}, "optimizer": {"lr": 1e-4},
                     "budget": {key: value for key, value in plan.items() if value is not None}}, "test")


def test_phases_of_an_open_loop() -> None:
    lines = describe_budget(config(hold_steps=2, ranges=[[48, 128], [32 + 16, 96]])).splitlines()
    assert lines[1].split() == ["iter1-compressed", "compression", "0..13", "128", "→", "48", "90.9"]
    assert lines[4].split() == ["iter2-expanded", "expansion", "38..49", "49", "→", "96", "74.0"]
    assert lines[-1] == "74 steps, schedule cosine"


def test_stages() -> None:
    lines = describe_budget(config(schedule="staged", cycle_steps=None, cycles=None, stages=[[3, 48], [2, 96]]))
    assert [line.split()[:3] for line in lines.splitlines()[1:3]] == [["stage1", "compression", "0..2"],
                                                                     ["stage2", "expansion", "3..4"]]


def test_a_closed_loop_shows_its_limits() -> None:
    said = describe_budget(config(schedule="closed", hold_steps=4))
    assert "closed: at most 76 steps, 13 phase ends" in said
    assert "48..128, first 128 for at least 4 steps, at most 10 tokens a step" in said
    assert "6..24 steps, decided from 2 steps together" in said
    assert "smallest of 48, 64, 96, 128 with J(B) >= 0.8 J(cap)" in said


def test_the_method_of_each_phase() -> None:
    """Values that hold, not overrides: the clip of a loss without a configured one is the loss's own."""
    run = validate({"name": "r", "model": {"path": "m"}, "optimizer": {"lr": 1e-4}, "algorithm": {"loss": "gspo"},
                    "budget": {"l_min": 48, "l_max": 128, "cycle_steps": 24, "cycles": 3},
                    "phases": {"compression": {"overlong": "mask", "advantage": "batch_std", "clip_high": 0.001},
                               "expansion": {"lr": 2e-4, "entropy_coef": 0.01}}}, "test")
    assert [line.split() for line in describe_method(run).splitlines()] == [
        ["compression", "expansion"], ["overlong", "mask", "zero"], ["advantage", "batch_std", "group_std"],
        ["clip_low", "0.0003", "0.0003"], ["clip_high", "0.001", "0.0004"], ["entropy_coef", "0", "0.01"],
        ["lr", "0.0001", "0.0002"]]
