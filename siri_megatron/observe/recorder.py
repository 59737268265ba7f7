"""What rank 0 writes down of a run: metric records, events, TensorBoard scalars."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from siri_megatron.budget.signal import StepSignal, short_step, zero_signal
from siri_megatron.budget.step_budget import StepBudget
from siri_megatron.observe.events import EventLog
from siri_megatron.observe.metrics import METRICS, MetricsWriter, known_of, truncate_after
from siri_megatron.observe.tensorboard_writer import TensorBoardWriter
from siri_megatron.paths import RunDir
from siri_megatron.reward.alarm import verifier_alarm


class Recorder:
    """Opens the metric files of a run whose next step is `first_step`; records of later steps are cut off.

    Args:
        tensorboard: also write TensorBoard scalars.
        max_failed: share of samples without a verdict above which the alarm is raised.
    """

    def __init__(self, paths: RunDir, first_step: int, *, tensorboard: bool, max_failed: float) -> None:
        truncate_after(paths.metrics, first_step - 1)
        self._metrics = MetricsWriter(paths.metrics)
        self._events = EventLog(paths.events)
        self._tensorboard = TensorBoardWriter(paths.tensorboard, first_step) if tensorboard else None
        self._max_failed = max_failed
        self._standing: set[str] = set()

    def step(self, budget: StepBudget, rollout: Mapping[str, Any], plan: Mapping[str, Any],
             trained: Mapping[str, float], seconds: Mapping[str, float]) -> None:
        """Write the record of a consumed step; says so loudly when steps stop carrying a signal (once, not each)."""
        record = step_record(budget, rollout, plan, trained, seconds)
        self._metrics.write(record)
        if self._tensorboard:
            self._tensorboard.write(record)
        self._warn("zero_signal", budget.step, zero_signal(StepSignal.of(record), budget))
        self._warn("short_step", budget.step, short_step(record, budget))
        alarm = verifier_alarm(record["failed_verifications"], record["samples"], self._max_failed)
        self._warn("verifier_alarm", budget.step, alarm)

    def _warn(self, kind: str, step: int, message: str | None) -> None:
        """An event at the first of several steps in a row that give reason for it."""
        if message and kind not in self._standing:
            self.event(kind, step, message=message)
        self._standing = self._standing | {kind} if message else self._standing - {kind}

    def event(self, kind: str, step: int, **fields: Any) -> None:
        self._events.write(kind, step, **fields)

    def close(self) -> None:
        if self._tensorboard:
            self._tensorboard.close()


def step_record(budget: StepBudget, rollout: Mapping[str, Any], plan: Mapping[str, Any],
                trained: Mapping[str, float], seconds: Mapping[str, float]) -> dict[str, Any]:
    """One metrics record. Pure; keys that the registry does not know (the collector sends more) stay out."""
    times = {f"{stage}_s": spent for stage, spent in seconds.items()}
    stamp = {"step": budget.step, "phase": budget.phase, "cycle": budget.cycle, "cap": budget.cap,
             "cap_version": budget.version, "weight_version": str(budget.step)}
    known = {key: value for source in (rollout, plan, trained) for key, value in source.items() if key in METRICS}
    record: dict[str, Any] = {**stamp, **known, **times}
    sampled = None if record.get("reused") else record.get("tokens")
    record["generation_tokens_per_s"] = _rate(sampled, record.get("sampling_s", times.get("generation_s")))
    record["training_tokens_per_s"] = _rate(record.get("train_tokens"), times.get("training_s"))
    return known_of(record)


def _rate(tokens: float | None, seconds: float | None) -> float | None:
    return tokens / seconds if tokens is not None and seconds else None
