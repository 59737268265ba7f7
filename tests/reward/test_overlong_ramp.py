from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from siri_megatron.reward.overlong_ramp import overlong_ramp

lengths = st.integers(0, 40000)
caps = st.integers(8, 32768)
buffers = st.floats(0.01, 1.0)


def as_printed(length: int, cap: int, buffer: float) -> float:
    """DAPO eq. 13, with L_max = cap and L_cache in tokens."""
    cache = buffer * cap
    if length <= cap - cache:
        return 0.0
    if length <= cap:
        return ((cap - cache) - length) / cache
    return -1.0


def test_the_papers_numbers():
    """L_max 20480, L_cache 4096: free up to 16384, half at 18432, all at 20480."""
    assert overlong_ramp([0, 16384, 17408, 18432, 20480, 30000], 20480, 4096 / 20480) == pytest.approx(
        [0, 0, -0.25, -0.5, -1, -1])


@given(st.lists(st.tuples(lengths, caps), min_size=1, max_size=20), buffers)
def test_formula(rows, buffer):
    length, cap = (np.array(column) for column in zip(*rows, strict=True))
    assert overlong_ramp(length, cap, buffer) == pytest.approx(
        [as_printed(int(one), int(at), buffer) for one, at in rows], abs=1e-9)


@given(lengths, caps, buffers)
def test_bounded(length, cap, buffer):
    assert -1 <= overlong_ramp(length, cap, buffer) <= 0


@given(caps, buffers)
def test_free_below_the_buffer(cap, buffer):
    free = np.arange(0, int(cap - cap * buffer) + 1)
    assert overlong_ramp(free, cap, buffer) == pytest.approx(np.zeros(len(free)), abs=1e-9)


@given(caps, buffers)
def test_falls_with_length(cap, buffer):
    ramp = overlong_ramp(np.arange(0, 2 * cap, max(1, cap // 50)), cap, buffer)
    assert np.all(np.diff(ramp) <= 0)
    assert overlong_ramp([cap, cap + 1, 2 * cap], cap, buffer) == pytest.approx([-1, -1, -1])


@given(st.integers(0, 400), st.integers(8, 400), buffers, st.integers(2, 50))
def test_scale_free(length, cap, buffer, times):
    assert overlong_ramp(length * times, cap * times, buffer) == pytest.approx(overlong_ramp(length, cap, buffer),
                                                                              abs=1e-9)


def test_negative_control_a_buffer_in_tokens_swallows_a_small_cap():
    """The paper's 4096 tokens at a cap of 4096: a response of one token would be punished; as a share it is not."""
    assert as_printed(1, 4096, 4096 / 4096) < 0
    assert overlong_ramp(1, 4096, 0.2) == 0
