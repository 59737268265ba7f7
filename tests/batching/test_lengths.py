from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from siri_megatron.batching.lengths import RowLengths, capacity_at, round_up
from siri_megatron.errors import ConfigError, DataError

sizes = st.tuples(st.integers(1, 200), st.integers(1, 500), st.integers(0, 3000))


def capacity(sizes, cap, longest=0):
    max_prompt, l_max, slack = sizes
    return capacity_at(cap, tokens_per_micro_batch=round_up(max_prompt + l_max) + slack, l_max=l_max,
                       max_prompt=max_prompt, longest=longest)


@given(sizes, st.data())
def test_holds_the_longest(sizes, data):
    max_prompt, l_max, _ = sizes
    cap = data.draw(st.integers(1, l_max))
    longest = data.draw(st.integers(0, max_prompt + l_max))
    assert capacity(sizes, cap, longest) >= max(max_prompt + cap, longest)


@given(sizes, st.data())
def test_never_above_the_configured(sizes, data):
    max_prompt, l_max, slack = sizes
    configured = round_up(max_prompt + l_max) + slack
    assert capacity(sizes, data.draw(st.integers(1, l_max))) <= configured
    assert capacity(sizes, l_max) == configured // 8 * 8


@given(sizes, st.data())
def test_follows_the_cap(sizes, data):
    low, high = sorted(data.draw(st.tuples(st.integers(1, sizes[1]), st.integers(1, sizes[1]))))
    assert capacity(sizes, low) <= capacity(sizes, high)


def test_capacity_by_hand():
    """Samples of 64 + 128 = 192 tokens in 4096; at cap 32 they have 96, so half the capacity."""
    at = {cap: capacity_at(cap, tokens_per_micro_batch=4096, l_max=128, max_prompt=64) for cap in (32, 48, 80, 128)}
    assert at == {32: 2048, 48: 2384, 80: 3072, 128: 4096}


def test_rows_of_a_larger_stamp_raise_the_capacity():
    assert capacity_at(32, tokens_per_micro_batch=192, l_max=128, max_prompt=64) == 96
    assert capacity_at(32, tokens_per_micro_batch=192, l_max=128, max_prompt=64, longest=150) == 152


def test_context_parallel_ranks_cut_whole_quanta():
    """4 ranks: capacities are multiples of 32; a sample of 97 tokens takes 128, one of 64 + 120 with 6 ranks 192."""
    assert capacity_at(32, tokens_per_micro_batch=192, l_max=128, max_prompt=64, cp=4) == 96
    assert capacity_at(32, tokens_per_micro_batch=192, l_max=128, max_prompt=64, longest=97, cp=4) == 128
    assert capacity_at(128, tokens_per_micro_batch=4100, l_max=128, max_prompt=64, cp=4) == 4096
    with pytest.raises(ConfigError, match="192 when padded to a multiple of 48"):
        capacity_at(48, tokens_per_micro_batch=184, l_max=120, max_prompt=64, cp=6)


def test_too_small_a_capacity_is_refused_with_both_numbers():
    with pytest.raises(ConfigError, match=r"tokens_per_micro_batch=100 .*64 prompt \+ 128 response tokens, 192"):
        capacity_at(48, tokens_per_micro_batch=100, l_max=128, max_prompt=64)


def test_a_row_above_the_capacity_is_refused():
    """slime and AReaL lay such a row alone into a bin and run out of memory after a raise of the cap."""
    with pytest.raises(DataError, match="a rollout of 5000 tokens does not fit into a micro-batch of 4096"):
        capacity_at(48, tokens_per_micro_batch=4096, l_max=128, max_prompt=64, longest=5000)


def test_rows_of_the_ledger():
    ledger = SimpleNamespace(group=np.array([0, 0]), reward=np.array([1, 0], np.float32),
                             outcome=np.array(["right", "failed"]), prompt_length=np.array([5, 5]),
                             response_length=np.array([7, 9]), forced_length=np.array([0, 2]))
    rows = RowLengths.of(ledger)
    assert rows.sampled.tolist() == [7, 7]
    assert rows.fed.tolist() == [11, 13]
    assert rows.reward[0] == 1
    assert np.isnan(rows.reward[1])


def test_unequal_columns_are_refused():
    with pytest.raises(DataError, match="unequal length"):
        RowLengths(np.ones(3, int), np.ones(2, int), np.ones(3, int), np.ones(3))
