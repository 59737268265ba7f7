"""Reads the measured steps of a run directory: what a calibration is made of."""

from __future__ import annotations

from typing import Any

import numpy as np

from siri_megatron.batching.lengths import RowLengths
from siri_megatron.errors import DataError
from siri_megatron.estimate.calibration import MeasuredStep
from siri_megatron.ledger.read import StepRows, closed_steps, open_step
from siri_megatron.observe import jsonl
from siri_megatron.paths import RunDir

PARTS = ("generation", "verification", "planning", "training", "push", "other")
OUTSIDE = ("commit", "export", "evaluation")


def measured_steps(paths: RunDir) -> list[MeasuredStep]:
    """The steps of a run that sampled their rollouts themselves, in order.

    Raises:
        DataError: the run has none, or its ledger is damaged.
    """
    closed = set(closed_steps(paths.ledger)) if paths.ledger.is_dir() else set()
    records = [record for record in jsonl.read(paths.metrics) if record["step"] in closed and not record.get("reused")]
    if not records:
        raise DataError(f"{paths.root} has no step with rollouts and seconds",
                        rule="a calibration reads metrics.jsonl and the ledger of a run that has sampled and trained",
                        fix="give the directory of such a run, or --calibrate to make one")
    return [_step(record, open_step(paths.ledger, record["step"])) for record in records]


def outside_seconds(paths: RunDir) -> dict[str, list[float]]:
    """Seconds of every commit, export and evaluation, in order."""
    events = jsonl.read(paths.events)
    return {kind: [event["seconds"] for event in events if event["kind"] == kind] for kind in OUTSIDE}


def _step(record: dict[str, Any], rows: StepRows) -> MeasuredStep:
    return MeasuredStep(record["cap"], RowLengths.of(rows), np.asarray(rows.truncated, bool),
                        rows.column("engine").astype(np.int64), {part: record[f"{part}_s"] for part in PARTS})
