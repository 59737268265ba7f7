from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from siri_megatron.batching.packing import fill_places, halve, pack, split, spread

CAPACITY = 100
rows = st.dictionaries(st.integers(0, 500), st.integers(1, CAPACITY), max_size=60)
few_rows = st.dictionaries(st.integers(0, 9), st.integers(1, CAPACITY), max_size=7)
multiples = st.integers(1, 12)


def both(lengths, multiple):
    """The bins as used, and those of the fallback alone."""
    used = fill_places(lengths, CAPACITY, multiple)
    return used, split(pack(lengths, CAPACITY), lengths, len(used))


def load(bin_, lengths):
    return sum(lengths[row] for row in bin_)


def fewest_bins(lengths, loads=()):
    """Brute force: every row into every bin that has room, or into a new one."""
    if not lengths:
        return len(loads)
    first, *rest = lengths
    options = [(*loads[:i], load + first, *loads[i + 1:]) for i, load in enumerate(loads) if load + first <= CAPACITY]
    return min(fewest_bins(rest, option) for option in [*options, (*loads, first)])


@given(rows, multiples)
def test_each_row_once(lengths, multiple):
    for bins in both(lengths, multiple):
        assert Counter(row for bin_ in bins for row in bin_) == Counter(lengths.keys())


@given(rows, multiples)
def test_no_bin_over_capacity(lengths, multiple):
    for bins in both(lengths, multiple):
        assert all(load(bin_, lengths) <= CAPACITY for bin_ in bins)


@given(rows)
def test_bins_never_waste_a_merge(lengths):
    lightest = sorted(load(bin_, lengths) for bin_ in pack(lengths, CAPACITY))[:2]
    assert len(lightest) < 2 or sum(lightest) > CAPACITY


@given(few_rows)
def test_close_to_the_fewest_bins(lengths):
    """Within 11/9 of the optimum and 2/3 of a bin, the bound of first-fit decreasing."""
    assert len(pack(lengths, CAPACITY)) <= 11 / 9 * fewest_bins(list(lengths.values())) + 2 / 3


def test_best_fit_by_hand():
    lengths = {0: 40, 1: 50, 2: 60, 3: 50}
    assert pack(lengths, CAPACITY) == [(2, 0), (1, 3)]
    assert next_fit(lengths.values()) == 3  # negative control: in arrival order the same rows need one more


def next_fit(lengths):
    bins, room = 0, 0
    for length in lengths:
        bins, room = (bins, room - length) if length <= room else (bins + 1, CAPACITY - length)
    return bins


@given(rows, multiples)
def test_count_is_a_multiple(lengths, multiple):
    fewest = max(1, len(pack(lengths, CAPACITY)))
    for bins in both(lengths, multiple):
        assert len(bins) % multiple == 0
        assert fewest <= len(bins) < fewest + multiple


@given(rows, multiples)
def test_no_empty_bin_while_rows_suffice(lengths, multiple):
    for bins in both(lengths, multiple):
        assert sum(not bin_ for bin_ in bins) == max(0, len(bins) - len(lengths))


@given(rows.filter(lambda lengths: len(lengths) > 1))
def test_halves_are_balanced(lengths):
    """Longest first to the lighter side: the sides differ by at most the largest row."""
    order = tuple(sorted(lengths, key=lambda row: -lengths[row]))
    left, right = halve(order, lengths)
    assert left
    assert right
    assert abs(load(left, lengths) - load(right, lengths)) <= max(lengths.values()) * 1.05  # costs are slightly convex


def test_spreading_is_more_even_than_splitting():
    """Sixteen equal rows, six to a bin, four places: 4 4 4 4 against 6 4 3 3."""
    lengths = dict.fromkeys(range(16), 16)
    used, halved = both(lengths, 4)
    assert sorted(map(len, used)) == [4, 4, 4, 4]
    assert sorted(map(len, halved)) == [3, 3, 4, 6]


def test_spreading_gives_way_to_packing():
    """50 + 40 | 50 + 30 leaves no place for the last 30, but 50 + 50 | 40 + 30 + 30 does."""
    lengths = {0: 50, 1: 50, 2: 40, 3: 30, 4: 30}
    assert spread(lengths, CAPACITY, 2) is None
    assert sorted(fill_places(lengths, CAPACITY, 2)) == [(0, 1), (2, 3, 4)]


@pytest.mark.parametrize(("lengths", "multiple", "expected"), [
    ({}, 2, [(), ()]), ({3: 100}, 2, [(3,), ()]), ({1: 10, 2: 10, 3: 10, 4: 10}, 4, [(1,), (2,), (3,), (4,)]),
])
def test_edges(lengths, multiple, expected):
    assert sorted(fill_places(lengths, CAPACITY, multiple)) == sorted(expected)
