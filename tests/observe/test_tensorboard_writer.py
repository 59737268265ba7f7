from __future__ import annotations

import subprocess
import sys

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from siri_megatron.observe.tensorboard_writer import TensorBoardWriter, scalars


def record(step, accuracy=0.5):
    return {"step": step, "phase": "compression", "cap": 48, "accuracy": accuracy, "loss": float("nan"), "reused": True,
            "weight_version": "3", "budget_accuracy": {"32": 0.25, "48": None}}


def curve(directory, tag):
    events = EventAccumulator(str(directory)).Reload()
    return [(point.step, point.value) for point in events.Scalars(tag)]


def test_tags():
    """NaN is left out (no point in a curve), a curve has one tag a budget, texts are not plotted."""
    assert dict(scalars(record(0))) == {"budget/cap": 48, "reward/accuracy": 0.5, "rollout/reused": 1,
                                        "reward/budget_accuracy/32": 0.25}


def test_tensorboard_reads_what_was_written(tmp_path):
    writer = TensorBoardWriter(tmp_path)
    for step in range(3):
        writer.write(record(step, accuracy=step / 4))
    writer.close()
    assert curve(tmp_path, "reward/accuracy") == [(0, 0.0), (1, 0.25), (2, 0.5)]


def test_a_resumed_run_draws_one_curve(tmp_path):
    first = TensorBoardWriter(tmp_path / "a")
    for step in range(4):
        first.write(record(step, 0.0))
    first.close()
    second = TensorBoardWriter(tmp_path / "b", first_step=2)
    for step in range(2, 4):
        second.write(record(step, 1.0))
    second.close()
    for source in ("a", "b"):  # one directory; the file names sort by time of writing
        for file in (tmp_path / source).iterdir():
            file.rename(tmp_path / f"events.out.tfevents.000000000{source}")
    assert curve(tmp_path, "reward/accuracy") == [(0, 0.0), (1, 0.0), (2, 1.0), (3, 1.0)]


def test_no_torch():
    code = "import sys, siri_megatron.observe.tensorboard_writer as _; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=180)
