"""The schedules against the vectors worked out from the paper's formulas, and their invariants."""

from __future__ import annotations

from statistics import mean

import pytest
from hypothesis import given
from hypothesis import strategies as st

from siri_megatron.budget.schedule import SCHEDULES, constant, cosine, linear, round_cap, stair, stair_cosine

L_MIN, L_MAX = 8192, 16384
COSINE_640 = {0: 16384, 40: 16072.2, 80: 15184.3, 160: 12288, 240: 9391.7, 320: 8192, 480: 12288, 640: 16384}
STAIR_COSINE_480 = {0: 16384, 30: 16384, 60: 16384, 90: 15184.3, 120: 12288, 150: 9391.7, 180: 8192, 240: 8192,
                    300: 8192, 330: 9391.7, 360: 12288, 390: 15184.3, 420: 16384, 450: 16384, 480: 16384}

names = st.sampled_from(sorted(SCHEDULES))
moving = st.sampled_from(["cosine", "stair", "stair_cosine", "linear"])
halves = st.integers(1, 400)
caps = st.tuples(st.integers(1, 40000), st.integers(0, 40000)).map(lambda pair: (pair[0], pair[0] + pair[1]))


@pytest.mark.parametrize(("t", "expected"), COSINE_640.items())
def test_cosine_vectors(t, expected):
    assert cosine(t, 640, L_MIN, L_MAX) == pytest.approx(expected, abs=0.05)


@pytest.mark.parametrize(("t", "expected"), STAIR_COSINE_480.items())
def test_stair_cosine_vectors(t, expected):
    assert stair_cosine(t, 480, L_MIN, L_MAX) == pytest.approx(expected, abs=0.05)


def test_vectors_tell_the_shapes_apart():
    """Negative control: the vectors of one shape do not fit the other."""
    assert stair_cosine(40, 640, L_MIN, L_MAX) != pytest.approx(COSINE_640[40], abs=0.05)
    assert cosine(90, 480, L_MIN, L_MAX) != pytest.approx(STAIR_COSINE_480[90], abs=0.05)


def test_stair_switches_after_half_a_cycle():
    assert [stair(t, 8, 1, 2) for t in range(17)] == [2, 1, 1, 1, 1, 2, 2, 2, 2, 1, 1, 1, 1, 2, 2, 2, 2]


@pytest.mark.parametrize("schedule", [cosine, stair, stair_cosine, linear])
def test_shapes_spend_equal_cap(schedule):
    """All have the same mean cap over a cycle, so that comparing them is fair (siri.md 1.4)."""
    assert mean(schedule(t, 480, L_MIN, L_MAX) for t in range(1, 481)) == pytest.approx(12288)


def test_linear_by_hand():
    assert [linear(t, 8, 10, 50) for t in range(9)] == [50, 40, 30, 20, 10, 20, 30, 40, 50]


def test_constant_is_l_max():
    assert {constant(t, 8, 1, 2) for t in range(9)} == {2}


@given(names, halves, caps, st.integers(0, 3000))
def test_bounded(name, half, bounds, t):
    low, high = bounds
    assert low <= round_cap(SCHEDULES[name](t, 2 * half, low, high)) <= high


@given(names, halves, caps, st.integers(0, 3000))
def test_periodic(name, half, bounds, t):
    low, high = bounds
    assert SCHEDULES[name](t + 2 * half, 2 * half, low, high) == SCHEDULES[name](t, 2 * half, low, high)


@given(moving, halves, caps)
def test_lowest_point_in_compression(name, half, bounds):
    low, high = bounds
    assert min(round_cap(SCHEDULES[name](t, 2 * half, low, high)) for t in range(1, half + 1)) == low


@given(names, halves, caps)
def test_highest_point_in_expansion(name, half, bounds):
    low, high = bounds
    assert round_cap(SCHEDULES[name](2 * half, 2 * half, low, high)) == high


@given(names, halves, caps)
def test_monotone_phases(name, half, bounds):
    low, high = bounds
    walk = [round_cap(SCHEDULES[name](t, 2 * half, low, high)) for t in range(1, 2 * half + 1)]
    assert walk[:half] == sorted(walk[:half], reverse=True)
    assert walk[half:] == sorted(walk[half:])


@pytest.mark.parametrize(("value", "cap"), [(12287.999999999998, 12288), (88.5, 89), (87.5, 88), (88.49, 88)])
def test_rounding_rule(value, cap):
    assert round_cap(value) == cap
