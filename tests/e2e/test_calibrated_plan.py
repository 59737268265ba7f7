"""`siri plan --calibrate` for real: learners, engines, and a plan out of their seconds."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from real_run import REPO, siri

from siri_megatron.launch.measured_run import measured_steps
from siri_megatron.paths import RunDir

pytestmark = [pytest.mark.engine, pytest.mark.soak]


def test_calibrated_plan_says_what_the_run_took(tmp_path: Path) -> None:
    """No wall-clock is asserted: the plan is compared with the seconds of the very run that it was fitted to."""
    asked = (str(REPO / "configs" / "tiny.yaml"), f"runs_dir={tmp_path}", "rollout.prompts_per_step=8",
             "evaluation.problems=16")
    found = json.loads(siri("plan", *asked, "--calibrate", "--json", timeout_s=900))
    assert found["machine"]["rates"]["origin"] == "calibrated"
    assert found["lengths"]["measured"]
    steps = measured_steps(RunDir(tmp_path / "tiny-calibration"))
    assert [step.cap for step in steps] == [128] * 5 + [88] * 5 + [48] * 5
    lowest, highest = found["caps"][0], found["caps"][-1]
    assert highest["generation_s"] > lowest["generation_s"]
    for part in ("generation", "training"):
        took = [step.seconds[part] for step in steps[1:]]
        assert min(took) / 2 <= lowest[f"{part}_s"] <= highest[f"{part}_s"] <= 2 * max(took)
    again = json.loads(siri("plan", *asked, "--json"))
    assert again["phases"] == found["phases"]
