"""Warnings of steps: an event when one begins, not at every step; the verifier's alarm. What a step cannot tell."""

from __future__ import annotations

from pathlib import Path

from siri_megatron.budget.step_budget import StepBudget
from siri_megatron.observe import jsonl
from siri_megatron.observe.metrics import METRICS, OF_AN_UPDATE
from siri_megatron.observe.recorder import Recorder, step_record
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


BUDGET = StepBudget(step=3, cycle=0, phase="compression", cap=8, version=1)


def test_a_step_without_an_update_tells_nothing_of_one() -> None:
    """An entropy of 0 would say that the policy has collapsed, where nothing was trained on and nothing measured."""
    plan, times = {"optimizer_steps": 0, "micro_batches": 0, "fill": 1.0}, {"generation": 2.0, "training": 0.001}
    trained = {"optimizer_steps": 0.0, "entropy": 0.0, "ess": 1.0, "grad_norm": 0.0, "train_tokens": 0.0,
               "clip_high": 0.28}
    record = step_record(BUDGET, {"tokens": 10, "truncated": 0.5}, plan, trained, times)
    assert {key for key, value in record.items() if value is None} == {
        "entropy", "ess", "grad_norm", "fill", "training_tokens_per_s"}
    assert {key: record[key] for key in ("micro_batches", "train_tokens", "clip_high", "generation_tokens_per_s")} == {
        "micro_batches": 0, "train_tokens": 0.0, "clip_high": 0.28, "generation_tokens_per_s": 5.0}


def test_a_step_with_an_update_keeps_its_zeros() -> None:
    """Negative control."""
    trained = dict.fromkeys(OF_AN_UPDATE, 0.0) | {"optimizer_steps": 1.0, "train_tokens": 100.0}
    record = step_record(BUDGET, {}, {}, trained, {"training": 2.0})
    assert [record[key] for key in OF_AN_UPDATE] == [0.0] * (len(OF_AN_UPDATE) - 1) + [50.0]
    assert set(OF_AN_UPDATE) < set(METRICS)
