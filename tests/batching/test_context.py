"""The cut of rows over context-parallel ranks."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from siri_megatron.batching.context import zigzag
from siri_megatron.errors import DataError

sizes = st.integers(1, 5)
chunks = st.lists(st.integers(0, 6), min_size=1, max_size=8)


def segments(numbers: list[int], size: int) -> np.ndarray:
    return np.array(numbers) * 2 * size


def written_out(lengths: list[int], size: int, rank: int) -> list[int]:
    """Chunks rank and 2 x size - 1 - rank of every segment."""
    tokens, begin = [], 0
    for length in lengths:
        chunk = length // (2 * size)
        for number in (rank, 2 * size - 1 - rank):
            tokens += range(begin + number * chunk, begin + (number + 1) * chunk)
        begin += length
    return tokens


@given(chunks, sizes)
def test_equals_a_written_out_loop(numbers: list[int], size: int) -> None:
    lengths = segments(numbers, size)
    assert zigzag(lengths, size).tolist() == [written_out(lengths.tolist(), size, rank) for rank in range(size)]


@given(chunks, sizes)
def test_each_token_once(numbers: list[int], size: int) -> None:
    lengths = segments(numbers, size)
    assert sorted(zigzag(lengths, size).ravel().tolist()) == list(range(lengths.sum()))


@given(chunks, sizes)
def test_equal_shares_and_equal_work(numbers: list[int], size: int) -> None:
    """Every rank has as many tokens of each segment, and their positions have the same sum."""
    lengths = segments(numbers, size)
    segment = np.repeat(np.arange(len(lengths)), lengths)
    position = np.arange(lengths.sum()) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    for weigh in (np.ones_like(position), position):
        shares = [np.bincount(segment[own], weigh[own], len(lengths)).tolist() for own in zigzag(lengths, size)]
        assert all(share == shares[0] for share in shares)


def test_by_hand() -> None:
    assert zigzag(np.array([8, 4]), 2).tolist() == [[0, 1, 6, 7, 8, 11], [2, 3, 4, 5, 9, 10]]
    assert zigzag(np.array([3, 2]), 1).tolist() == [[0, 1, 2, 3, 4]]


@pytest.mark.parametrize("length", [6, -4])
def test_a_length_that_cannot_be_cut_is_refused(length: int) -> None:
    """A plan of another layout, whose rows are too narrow for the padding of their segments, leaves -4 tokens."""
    with pytest.raises(DataError, match=f"a segment of {length} tokens cannot be cut over 2 context-parallel ranks"):
        zigzag(np.array([4, length]), 2)


def test_needs_no_torch() -> None:
    code = "import sys, siri_megatron.batching.context; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], timeout=60).returncode == 0
