"""Down-sampling: the invariants of report.bins, against counts written out."""

from __future__ import annotations

import itertools
import math

from hypothesis import given
from hypothesis import strategies as st

from siri_megatron.report.bins import LIMIT, bins, merge

phases = st.lists(st.tuples(st.integers(0, 3), st.integers(1, 60)), max_size=30).map(
    lambda runs: [name for name, length in runs for _ in range(length)])


@given(phases, st.integers(1, 50))
def test_each_record_once(names, limit):
    assert [i for part in bins(names, limit) for i in part] == list(range(len(names)))


@given(phases, st.integers(1, 50))
def test_bounded(names, limit):
    assert len(bins(names, limit)) <= 2 * limit


def test_bounded_also_where_every_step_is_a_phase():
    assert len(bins(range(100_000))) <= 2 * LIMIT


@given(st.lists(st.integers(0, 3), max_size=LIMIT))
def test_short_runs_whole(names):
    assert [len(part) for part in bins(names)] == [1] * len(names)


@given(phases, st.integers(1, 50))
def test_phases_apart(names, limit):
    changes = sum(a != b for a, b in itertools.pairwise(names))
    mixed = [part for part in bins(names, limit) if len({names[i] for i in part}) > 1]
    assert not mixed or changes + 1 > limit


def test_phases_apart_needs_its_edges():
    """Negative control: plain bins of five would mix these phases."""
    names = [0] * 7 + [1] * 8
    assert any(len(set(names[start:start + 5])) > 1 for start in range(0, 15, 5))
    assert all(len({names[i] for i in part}) == 1 for part in bins(names, 3))


def test_extremes_kept():
    steps = [{"step": i, "mismatch_max_abs": value, "accuracy": value} for i, value in enumerate((0.1, 0.9, 0.2))]
    merged = merge(steps)
    assert merged["mismatch_max_abs"] == 0.9
    assert math.isclose(merged["accuracy"], 0.4)
    assert (merged["step"], merged["first_step"], merged["last_step"]) == (1, 0, 2)


def test_unknown_values_do_not_count():
    assert merge([{"step": 0, "loss": None}, {"step": 1, "loss": 2.0}])["loss"] == 2.0
    assert merge([{"step": 0, "loss": None}])["loss"] is None
    curves = [{"step": 0, "curve": {8: 0.2, 16: None}}, {"step": 1, "curve": {8: 0.4}}]
    assert merge(curves)["curve"] == {8: 0.30000000000000004, 16: None}
