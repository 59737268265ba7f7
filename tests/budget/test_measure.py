"""What the closed loop takes from a step, and how steps are pooled. Oracle: counting all samples at once."""

from __future__ import annotations

import json
import math

import pytest
from budget_configs import counted
from hypothesis import given
from hypothesis import strategies as st

from siri_megatron.budget.measure import Figures, Measure, pool, starved

GRID = (32, 64, 96)
samples = st.lists(st.tuples(st.integers(1, 120), st.booleans()), min_size=1, max_size=30)
steps = st.lists(st.tuples(st.sampled_from([64, 80, 128]), samples), min_size=1, max_size=5)


@given(steps, st.sampled_from([32, 64, 128]))
def test_pooling_is_counting(steps: list[tuple[int, list[tuple[int, bool]]]], budget: int) -> None:
    measures = [Measure.of(cap, counted(samples, cap, GRID)) for cap, samples in steps]
    answers = [(length <= min(budget, cap), right) for cap, samples in steps for length, right in samples]
    ended = [right for ends, right in answers if ends]
    assert pool(measures, budget) == pytest.approx((
        sum(ended) / len(answers), 1 - len(ended) / len(answers), sum(ended) / len(ended) if ended else 0.0))


def test_above_the_cap_is_the_cap() -> None:
    measure = Measure.of(80, counted([(30, True), (70, True), (90, True), (70, False)], 80, GRID))
    assert measure is not None
    assert measure.at == {32: (0.25, 0.75, 1.0), 64: (0.25, 0.75, 1.0), 80: (0.5, 0.25, 2 / 3)}
    assert measure.figures(96) == measure.figures(10**6) == Figures(0.5, 0.25, 2 / 3)
    with pytest.raises(KeyError):
        measure.figures(70)


def test_no_verdict_no_measure() -> None:
    assert Measure.of(80, counted([], 80, GRID)) is None
    assert starved(counted([], 80, GRID))
    missing_at_one_budget = counted([(30, True)], 80, GRID)
    missing_at_one_budget["budget_accuracy"]["64"] = None
    assert Measure.of(80, missing_at_one_budget) is None


@pytest.mark.parametrize(("samples", "hungry"), [
    ([(90, True)] * 19 + [(10, True)], True), ([(90, True)] * 18 + [(10, True)] * 2, False),  # 95%, 90% truncated
    ([(10, False)] * 20, True), ([(10, True)] * 20, False),  # all wrong; all right: a shorter cap makes a signal
])
def test_starved(samples: list[tuple[int, bool]], hungry: bool) -> None:
    assert starved(counted(samples, 80, GRID)) == hungry


@given(samples)
def test_json(samples: list[tuple[int, bool]]) -> None:
    measure = Measure.of(80, counted(samples, 80, GRID))
    assert measure is not None
    again = Measure.from_json(json.loads(json.dumps(measure.to_json())))
    assert again == measure
    assert not any(math.isnan(share) for at in again.at.values() for share in at)
