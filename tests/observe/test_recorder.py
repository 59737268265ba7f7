"""Warnings of steps: an event when one begins, not at every step; the verifier's alarm."""

from __future__ import annotations

from pathlib import Path

from siri_megatron.budget.step_budget import StepBudget
from siri_megatron.observe import jsonl
from siri_megatron.observe.recorder import Recorder
from siri_megatron.paths import RunDir


def test_verifier_alarm_is_an_event_at_its_beginning(tmp_path: Path) -> None:
    paths = RunDir(tmp_path)
    recorder = Recorder(paths, 0, tensorboard=False, max_failed=0.05)
    for step, failed in enumerate((0, 5, 6, 40, 2, 100)):
        recorder.step(StepBudget(step=step, cycle=0, phase="compression", cap=8, version=1),
                      {"samples": 100, "failed_verifications": failed, "failed_share": failed / 100, "truncated": 0.0,
                       "all_wrong_groups": 0.1, "all_right_groups": 0.1}, {}, {}, {})
    recorder.close()
    events = [(event["kind"], event["step"]) for event in jsonl.read(paths.events)]
    assert events == [("verifier_alarm", 2), ("verifier_alarm", 5)]
    assert "6 of 100 samples" in jsonl.read(paths.events)[0]["message"]
    assert [record["failed_share"] for record in jsonl.read(paths.metrics)] == [0.0, 0.05, 0.06, 0.4, 0.02, 1.0]
