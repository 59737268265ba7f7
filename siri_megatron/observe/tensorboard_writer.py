"""TensorBoard scalars, written by TensorBoard's own event writer: no torch, no TensorFlow."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.summary.writer.event_file_writer import EventFileWriter

from siri_megatron.observe.jsonl import plain
from siri_megatron.observe.metrics import METRICS

NOT_PLOTTED = ("step", "phase", "weight_version", "cap_version")


class TensorBoardWriter:
    """Writes metric records as scalars `section/key`.

    Args:
        first_step: the first step that will be written. TensorBoard hides what an earlier session wrote from this step
            on, so a resumed run draws one curve.
    """

    def __init__(self, directory: Path, first_step: int = 0) -> None:
        self._writer = EventFileWriter(str(directory))
        start = SessionLog(status=SessionLog.START)
        self._writer.add_event(Event(wall_time=time.time(), step=first_step, session_log=start))

    def write(self, record: Mapping[str, Any]) -> None:
        """Write the record of one step and flush it."""
        values = [Summary.Value(tag=tag, simple_value=value) for tag, value in scalars(record)]
        self._writer.add_event(Event(wall_time=time.time(), step=record["step"], summary=Summary(value=values)))
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()


def scalars(record: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    """(tag, value) of every known number of a record; a curve gives one tag a budget."""
    for key, value in plain(record).items():
        if key in NOT_PLOTTED or value is None:
            continue
        tag = f"{METRICS[key].section}/{key}"
        if METRICS[key].kind == "curve":
            yield from ((f"{tag}/{budget}", float(item)) for budget, item in value.items() if item is not None)
        else:
            yield tag, float(value)
