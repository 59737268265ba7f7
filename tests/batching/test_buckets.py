from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from siri_megatron.batching.buckets import best_widths, bucket_widths, heights, pad, planned_shapes
from siri_megatron.batching.lengths import round_up

CAPACITY = 192
lengths_lists = st.lists(st.integers(1, 80), min_size=1, max_size=30)
rows = st.lists(st.integers(1, CAPACITY), max_size=60).map(lambda lengths: np.sort(np.array(lengths, np.int64))[::-1])
counts = st.integers(1, 5)
multiples = st.integers(1, 12)


def padding(lengths, widths):
    return sum(widths[bisect_left(widths, length)] - length for length in lengths)


def least_padding(lengths, count):
    """Brute force over every choice of at most `count` widths."""
    occurring = sorted({round_up(length) for length in lengths})
    choices = [(*chosen, occurring[-1]) for size in range(count) for chosen in combinations(occurring[:-1], size)]
    return min(padding(lengths, choice) for choice in choices)


@given(lengths_lists, counts)
def test_widths_are_optimal(lengths, count):
    widths = bucket_widths(lengths, count)
    assert len(widths) <= count
    assert widths == tuple(sorted(set(widths)))
    assert all(width % 8 == 0 for width in widths)
    assert padding(lengths, widths) == least_padding(lengths, count)


def test_quantiles_would_pad_more():
    """Negative control: edges at equal numbers of rows, the usual choice, are far from the optimum here."""
    lengths = [8] * 8 + [16, 16] + [80, 80]
    assert bucket_widths(lengths, 2) == (16, 80)
    assert padding(lengths, (8, 80)) == 128
    assert padding(lengths, (16, 80)) == 64


def areas_by_recursion(widths, rows, count):
    """Least area of at most `count` buckets, straight from the definition."""
    if not widths:
        return 0
    if count == 0:
        return float("inf")
    return min(areas_by_recursion(widths[:begin], rows[:begin], count - 1) + widths[-1] * sum(rows[begin:])
               for begin in range(len(widths)))


@given(st.dictionaries(st.integers(1, 40).map(lambda width: 8 * width), st.floats(0.01, 100), min_size=1, max_size=9),
       counts)
def test_widths_are_optimal_for_parts_of_rows(recent, count):
    """Rows that fade count with a weight: still the least area, against a plain recursion."""
    widths = sorted(recent)
    masses = [recent[width] for width in widths]
    chosen = best_widths(widths, masses, count)
    area = sum(chosen[bisect_left(chosen, width)] * mass for width, mass in zip(widths, masses, strict=True))
    assert area == pytest.approx(areas_by_recursion(widths, masses, count))
    assert len(chosen) <= count


@given(rows, counts, multiples)
def test_each_row_once(lengths, count, multiple):
    micros = planned(lengths, count, multiple)
    assert Counter(row for part, _, _ in micros for row in part.tolist()) == Counter(range(len(lengths)))
    widths = bucket_widths(lengths, count) if len(lengths) else ()
    assert all(widths[bisect_left(widths, lengths[row])] == width for part, _, width in micros for row in part)


@given(rows, counts, multiples)
def test_no_bin_over_capacity(lengths, count, multiple):
    for part, height, width in planned(lengths, count, multiple):
        assert max(1, len(part)) <= height
        assert height * width <= CAPACITY


@given(rows, counts, multiples)
def test_few_shapes(lengths, count, multiple):
    widths = bucket_widths(lengths, count) if len(lengths) else ()
    known = planned_shapes(widths, CAPACITY)
    assert {(height, width) for _, height, width in planned(lengths, count, multiple)} <= known
    assert len(known) <= 1 + sum(2 + 2 * np.log2(CAPACITY // width) for width in widths)


def test_shapes_do_not_follow_the_rows():
    """A hundred steps of other sizes run in 12 heights; parts of equal size, with no empty rows, would have 18."""
    sizes = range(200, 300)
    seen = {height for size in sizes for _, height, _ in pad(np.full(size, 16), (16,), 1024, 3)}
    assert seen <= {64, 48, 32, 24, 16, 12, 8, 6, 4, 3, 2, 1}
    even = {len(part) for size in sizes for part in np.array_split(np.arange(size), -(-size // 64 // 3) * 3)}
    assert len(even) == 18  # negative control


@given(st.integers(1, 300), st.integers(1, 9))
def test_parting_never_takes_more(size, multiple):
    """33 rows in 64 places, parted, are 24 + 9 in 24 + 12; equal halves would need 24 + 24."""
    def padded(multiple):
        return sum(height for part, height, _ in pad(np.full(size, 16), (16,), 1024, multiple) if len(part))
    assert padded(multiple) <= padded(1)


def test_heights_by_hand():
    """13 rows of 32 fit into 416 tokens; 30 rows: two of 12 and 6, raised to 4: one of 12 is parted."""
    assert heights(32, 416) == heights(30, 416) == [12, 8, 6, 4, 3, 2, 1]
    assert [heights(1, most)[0] for most in (1, 2, 3, 4, 5, 6, 7, 8, 11, 12, 15, 16)] == [
        1, 2, 3, 4, 4, 6, 6, 8, 8, 12, 12, 16]
    assert planned_shapes((32, 200), 416) == {
        *((height, 32) for height in (12, 8, 6, 4, 3, 2, 1)), (2, 200), (1, 200), (1, 8)}
    micros = pad(np.full(29, 30), (32,), 416, 4)
    assert [(len(part), height) for part, height, _ in micros] == [(12, 12), (6, 6), (6, 6), (5, 6)]


@given(rows, counts, multiples)
def test_count_is_a_multiple(lengths, count, multiple):
    micros = planned(lengths, count, multiple)
    assert micros
    assert len(micros) % multiple == 0


@given(rows, counts, multiples)
def test_no_empty_bin_while_rows_suffice(lengths, count, multiple):
    micros = planned(lengths, count, multiple)
    assert sum(not len(part) for part, _, _ in micros) == max(0, len(micros) - len(lengths))


def planned(lengths, count, multiple):
    widths = bucket_widths(lengths, count) if len(lengths) else (8,)
    return pad(lengths, widths, CAPACITY, multiple)
