from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from itertools import combinations

from hypothesis import given
from hypothesis import strategies as st

from siri_megatron.batching.buckets import bucket_widths, pad
from siri_megatron.batching.lengths import round_up

CAPACITY = 192
lengths_lists = st.lists(st.integers(1, 80), min_size=1, max_size=30)
rows = st.dictionaries(st.integers(0, 500), st.integers(1, CAPACITY), max_size=60)
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


@given(rows, counts, multiples)
def test_each_row_once(lengths, count, multiple):
    micros = planned(lengths, count, multiple)
    assert Counter(row for part, _ in micros for row in part) == Counter(lengths.keys())
    assert all(lengths[row] <= width for part, width in micros for row in part)


@given(rows, counts, multiples)
def test_no_bin_over_capacity(lengths, count, multiple):
    assert all(len(part) * width <= CAPACITY for part, width in planned(lengths, count, multiple))


@given(rows, counts, multiples)
def test_few_shapes(lengths, count, multiple):
    shapes = {(len(part), width) for part, width in planned(lengths, count, multiple)}
    assert len(shapes) <= 2 * count + 1


@given(rows, counts, multiples)
def test_count_is_a_multiple(lengths, count, multiple):
    micros = planned(lengths, count, multiple)
    assert micros
    assert len(micros) % multiple == 0


@given(rows, counts, multiples)
def test_no_empty_bin_while_rows_suffice(lengths, count, multiple):
    micros = planned(lengths, count, multiple)
    assert sum(not part for part, _ in micros) == max(0, len(micros) - len(lengths))


def planned(lengths, count, multiple):
    widths = bucket_widths(list(lengths.values()), count) if lengths else ()
    return pad(lengths, widths, CAPACITY, multiple)
