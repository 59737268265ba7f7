from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from siri_megatron.batching.lengths import cost
from siri_megatron.batching.packing import pack, split, spread

CAPACITY = 100
rows = st.lists(st.integers(1, CAPACITY), max_size=60).map(lambda lengths: falling(lengths))
few_rows = st.lists(st.integers(1, CAPACITY), max_size=7).map(lambda lengths: falling(lengths))
counts = st.integers(1, 12)


def falling(lengths):
    return np.sort(np.array(lengths, np.int64))[::-1]


def loads(lengths, bins, count=0):
    return np.bincount(bins, lengths, count)


def fewest_bins(lengths, bins=()):
    """Brute force: every row into every bin that has room, or into a new one."""
    if not lengths:
        return len(bins)
    first, *rest = lengths
    options = [(*bins[:i], load + first, *bins[i + 1:]) for i, load in enumerate(bins) if load + first <= CAPACITY]
    return min(fewest_bins(rest, option) for option in [*options, (*bins, first)])


def best_fit(lengths):
    """Best-fit decreasing row by row: loads of the bins."""
    bins = []
    for length in lengths:
        fitting = [number for number, load in enumerate(bins) if load + length <= CAPACITY]
        if fitting:
            bins[max(fitting, key=lambda number: bins[number])] += length
        else:
            bins.append(length)
    return bins


def lightest_first(costs, count):
    """LPT row by row: costs of the bins."""
    bins = [0.0] * count
    for spent in costs:
        bins[bins.index(min(bins))] += spent
    return bins


@given(rows, counts)
def test_each_row_once(lengths, count):
    """Every row has a bin by construction; none has a number outside of those that were asked for."""
    packed = pack(lengths, CAPACITY)
    made = max(count, packed.max(initial=-1) + 1)
    for bins, most in ((packed, len(lengths)), (split(packed, cost(lengths), made), made),
                       (spread(lengths, cost(lengths), count, 10**9), count)):
        assert bins.shape == lengths.shape
        assert ((bins >= 0) & (bins < most)).all()


@given(rows, counts)
def test_no_bin_over_capacity(lengths, count):
    packed = pack(lengths, CAPACITY)
    for bins in (packed, split(packed, cost(lengths), count), spread(lengths, cost(lengths), count, CAPACITY)):
        assert bins is None or loads(lengths, bins).max(initial=0) <= CAPACITY


@given(rows)
def test_bins_never_waste_a_merge(lengths):
    lightest = sorted(loads(lengths, pack(lengths, CAPACITY)))[:2]
    assert len(lightest) < 2 or sum(lightest) > CAPACITY


@given(rows)
def test_packing_runs_is_packing_row_by_row(lengths):
    """Equal lengths go together, and every bin comes out as if each row had been placed alone."""
    assert sorted(loads(lengths, pack(lengths, CAPACITY))) == sorted(best_fit(lengths.tolist()))


@given(few_rows)
def test_close_to_the_fewest_bins(lengths):
    """Within 11/9 of the optimum and 2/3 of a bin, the bound of first-fit decreasing."""
    assert pack(lengths, CAPACITY).max(initial=-1) + 1 <= 11 / 9 * fewest_bins(lengths.tolist()) + 2 / 3


def test_best_fit_by_hand():
    lengths = np.array([60, 50, 50, 40])
    assert pack(lengths, CAPACITY).tolist() == [0, 1, 1, 0]
    assert next_fit([40, 50, 60, 50]) == 3  # negative control: in arrival order the same rows need one more


def next_fit(lengths):
    bins, room = 0, 0
    for length in lengths:
        bins, room = (bins, room - length) if length <= room else (bins + 1, CAPACITY - length)
    return bins


@given(rows, counts)
def test_spread_is_even(lengths, count):
    spent = cost(lengths)
    made = loads(spent, spread(lengths, spent, count, 10**9), count)
    assert made.max() - made.min() <= spent.max(initial=0) + 1e-6


@given(st.lists(st.integers(1, 9), min_size=200, max_size=400).map(falling), counts)
def test_many_short_rows_spread_as_evenly_as_one_by_one(lengths, count):
    """Several rows at once do no harm: the last rows, one by one, even the bins out, here to a token or two."""
    made = loads(lengths, spread(lengths, lengths.astype(float), count, 10**9), count)
    one_by_one = lightest_first(lengths.tolist(), count)
    assert made.max() <= max(one_by_one) + 1
    in_order = loads(lengths, np.arange(len(lengths)) * count // len(lengths), count)
    assert count == 1 or in_order.max() >= made.max()  # negative control: equal numbers of rows are no better


@given(rows, counts)
def test_rows_that_are_few_are_spread_as_one_by_one(lengths, count):
    """Up to two rows a bin: exactly LPT."""
    lengths = lengths[: 2 * count]
    made = loads(lengths, spread(lengths, lengths.astype(float), count, 10**9), count)
    assert sorted(made) == pytest.approx(sorted(lightest_first(lengths.tolist(), count)))


@given(rows, counts)
def test_count_is_exact(lengths, count):
    packed = pack(lengths, CAPACITY)
    made = split(packed, cost(lengths), max(count, packed.max(initial=-1) + 1))
    places = max(count, packed.max(initial=-1) + 1)
    assert (np.bincount(made, minlength=places) == 0).sum() == max(0, places - len(lengths))
    spread_out = spread(lengths, cost(lengths), count, 10**9)
    assert (np.bincount(spread_out, minlength=count) == 0).sum() == max(0, count - len(lengths))


def test_splitting_halves_the_costliest():
    """Six equal rows and four: the six are parted, then one of the threes or the four."""
    lengths, packed = np.full(10, 16), np.array([0] * 6 + [1] * 4)
    assert sorted(Counter(split(packed, cost(lengths), 3).tolist()).values()) == [3, 3, 4]
    assert sorted(Counter(split(packed, cost(lengths), 4).tolist()).values()) == [2, 2, 3, 3]


def test_spreading_gives_way_to_packing():
    """50 + 40 | 50 + 30 leaves no place for the last 30, but 50 + 50 | 40 + 30 + 30 does."""
    lengths = np.array([50, 50, 40, 30, 30])
    assert spread(lengths, cost(lengths), 2, CAPACITY) is None
    assert pack(lengths, CAPACITY).tolist() == [0, 0, 1, 1, 1]
