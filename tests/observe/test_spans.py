"""What processes write about when they did what."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from siri_megatron.observe import jsonl
from siri_megatron.observe.spans import SLICE_S, BusyLog, SpanLog, read_spans
from siri_megatron.observe.stages import StageClock


class Time:
    def __init__(self, now: float = 100.0) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now


def test_a_line_a_step(tmp_path):
    time = Time()
    log = SpanLog(tmp_path / "spans" / "learner-0.jsonl", "learner-0", time, lambda: 1e9)
    log.write(0)
    assert not log.path.exists()
    log.add("training", 100.0, 102.5)
    log.add("push", 102.5, 103.0, engines=2)
    log.write(7)
    log.write(8)
    assert jsonl.read(log.path) == [{"process": "learner-0", "step": 7, "spans": [
        ["training", 1e9, 2.5], ["push", 1e9 + 2.5, 0.5, {"engines": 2}]]}]


def test_a_span_is_written_also_when_its_work_fails(tmp_path):
    time = Time()
    log = SpanLog(tmp_path / "collector.jsonl", "collector", time, lambda: 0.0)

    def work() -> None:
        with log.span("collect", step=3):
            time.now += 2
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        work()
    assert jsonl.read(log.path) == [{"process": "collector", "step": 3, "spans": [["collect", 0.0, 2.0, {"step": 3}]]}]


@given(st.lists(st.tuples(st.integers(0, 20), st.integers(1, 10)), min_size=1, max_size=12))
def test_busy_is_a_union(tmp_path_factory, requests):
    """Against the union of the intervals, second by second."""
    directory, time = tmp_path_factory.mktemp("busy"), Time(0.0)
    log = BusyLog(directory, time)
    for second in range(31):
        time.now = float(second)
        for start, length in requests:
            if start + length == second:
                log.ended(0, 10)
        for start, _ in requests:
            if start == second:
                log.started(0)
    spans = [span for line in read_spans(directory) for span in line["spans"]]
    begin = min(span[1] for span in spans) - min(start for start, _ in requests)
    seen = {second for span in spans for second in range(round(span[1] - begin), round(span[1] - begin + span[2]))}
    assert seen == {second for start, length in requests for second in range(start, start + length)}
    assert sum(span[3]["requests"] for span in spans) == len(requests)
    assert sum(span[3]["tokens"] for span in spans) == 10 * len(requests)


def test_cut_when_long(tmp_path):
    time = Time(0.0)
    log = BusyLog(tmp_path, time)
    log.started(3)
    for _ in range(10):
        log.started(3)
        time.now += SLICE_S / 4
        log.ended(3, 1)
    spans = [span for line in read_spans(tmp_path) for span in line["spans"]]
    assert [span[2] for span in spans] == [SLICE_S, SLICE_S]
    assert [span[3]["requests"] for span in spans] == [4, 4]


def test_what_is_no_span_is_left_out(tmp_path):
    for bad in ('{"process": 3, "spans": []}', '{"process": "a"}', '{"process": "a", "spans": [["x", 1]]}',
                '{"process": "a", "spans": [["x", "1", 2]]}', '{"process": "a", "spans": [["x", 1, 2, "y"]]}',
                '{"process": "a", "spans": [["x", NaN, 2]]}', '{"process": "a", "spans": [["x", 1, 1e999]]}',
                '{"process": "a", "spans": [["x", 1, -2]]}'):
        (tmp_path / "a.jsonl").write_text(bad + "\n")
        assert read_spans(tmp_path) == []
    assert read_spans(tmp_path / "missing") == []


def test_a_disk_that_takes_no_more_costs_the_spans_only(tmp_path, caplog):
    """The error of the work inside must come out, not one of its span."""
    (tmp_path / "spans").write_text("in the way")
    log = SpanLog(tmp_path / "spans" / "a.jsonl", "a")
    for _ in range(2):
        with pytest.raises(ZeroDivisionError), log.span("collect", step=3):
            raise ZeroDivisionError
    assert [record.message.partition(":")[0] for record in caplog.records] == ["spans are lost"]


def test_heard_as_it_counts():
    """The pieces that a listener hears are those that count for a stage."""
    time, heard = Time(), []
    clock = StageClock(time, heard=lambda *piece: heard.append(piece))
    time.now += 1  # other
    with clock.stage("training"):
        time.now += 2
        with clock.stage("push"):
            time.now += 4
        time.now += 8
    seconds = clock.take()
    assert heard == [("training", 101.0, 103.0), ("push", 103.0, 107.0), ("training", 107.0, 115.0)]
    assert (seconds["training"], seconds["push"], seconds["other"]) == (10.0, 4.0, 1.0)
