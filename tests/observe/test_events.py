from __future__ import annotations

import pytest

from siri_megatron.observe.events import EventLog
from siri_megatron.observe.jsonl import read


def test_an_event_carries_time_kind_step_and_fields(tmp_path):
    log = EventLog(tmp_path / "events.jsonl", clock=lambda: 12.5)
    log.write("commit", 8, seconds=0.25, tag=None)
    written = log.write("run_started", resumed=False)
    assert read(tmp_path / "events.jsonl") == [
        {"ts": 12.5, "kind": "commit", "step": 8, "seconds": 0.25, "tag": None}, written]
    assert written == {"ts": 12.5, "kind": "run_started", "step": None, "resumed": False}


def test_reserved_fields_are_refused(tmp_path):
    log = EventLog(tmp_path / "events.jsonl")
    with pytest.raises(ValueError, match="reserved"):
        log.write("commit", 8, ts=3)
    assert not log.path.exists()


def test_a_disk_that_takes_no_more_costs_the_event_only_where_asked(tmp_path):
    (tmp_path / "events.jsonl").mkdir()  # in the way
    lost: list[OSError] = []
    assert EventLog(tmp_path / "events.jsonl", lost=lost.append).write("end")["kind"] == "end"
    assert len(lost) == 1
    with pytest.raises(OSError, match="Is a directory"):
        EventLog(tmp_path / "events.jsonl").write("end")
