from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from siri_megatron.batching.lengths import RowLengths, capacity_at, round_up, tokens_alone
from siri_megatron.errors import ConfigError, DataError

sizes = st.tuples(st.integers(1, 200), st.integers(1, 500), st.integers(0, 3000))
memories = st.builds(lambda flat, row, fixed: lambda tokens, longest: tokens * (flat + row * longest) + fixed,
                     st.integers(1, 1000), st.sampled_from([0, 1, 7]), st.integers(0, 10**6))
"""Bytes of a micro-batch: linear in its tokens, each of which holds scores of its row (or not)."""


def capacity(sizes, cap, longest=0, memory=tokens_alone):
    max_prompt, l_max, slack = sizes
    return capacity_at(cap, tokens_per_micro_batch=round_up(max_prompt + l_max) + slack, l_max=l_max,
                       max_prompt=max_prompt, longest=longest, micro_bytes=memory)


@given(sizes, memories, st.data())
def test_holds_the_longest(sizes, memory, data):
    max_prompt, l_max, _ = sizes
    cap = data.draw(st.integers(1, l_max))
    longest = data.draw(st.integers(0, max_prompt + l_max))
    assert capacity(sizes, cap, longest, memory) >= max(max_prompt + cap, longest)


@given(sizes, memories, st.data())
def test_never_above_the_provisioned_peak(sizes, memory, data):
    """And the next larger one would be: found by counting up, quantum by quantum."""
    max_prompt, l_max, slack = sizes
    configured = (round_up(max_prompt + l_max) + slack) // 8 * 8
    cap, peak = data.draw(st.integers(1, l_max)), memory(configured, max_prompt + l_max)
    longest = data.draw(st.integers(0, max_prompt + l_max))
    most, row = configured, max(max_prompt + cap, longest)
    while memory(most + 8, row) <= peak:
        most += 8
    assert capacity(sizes, cap, longest, memory) == most
    assert capacity(sizes, l_max, 0, memory) == configured


@given(sizes, memories, st.data())
def test_grows_as_the_cap_falls(sizes, memory, data):
    low, high = sorted(data.draw(st.tuples(st.integers(1, sizes[1]), st.integers(1, sizes[1]))))
    assert capacity(sizes, low, 0, memory) >= capacity(sizes, high, 0, memory)


def test_capacity_by_hand():
    """4096 tokens, rows of 64 + 128 = 192. If a token takes 100 bytes and 1 for each of its row, the peak is 4096 x 292
    bytes: at cap 32, with 96 + 100 a token, that is 6102, hence 6096. Where rows do not count it is 4096 throughout."""
    sizes = {"tokens_per_micro_batch": 4096, "l_max": 128, "max_prompt": 64}
    assert capacity_at(32, **sizes, micro_bytes=lambda tokens, longest: tokens * (100 + longest)) == 6096
    assert [capacity_at(cap, **sizes) for cap in (32, 48, 80, 128)] == [4096] * 4


def test_rows_of_a_larger_stamp_count_as_they_are():
    """At cap 32 a row of 150 tokens leaves less room than those of 96, but more than those of 192."""
    sizes = {"tokens_per_micro_batch": 192, "l_max": 128, "max_prompt": 64}
    at = {longest: capacity_at(32, **sizes, longest=longest, micro_bytes=lambda tokens, row: tokens * (100 + row))
          for longest in (0, 96, 150, 192)}
    assert at == {0: 280, 96: 280, 150: 224, 192: 192}


def test_context_parallel_ranks_cut_whole_quanta():
    """4 ranks: capacities are multiples of 32; a sample of 64 + 120 takes 192 with 6 ranks."""
    assert capacity_at(32, tokens_per_micro_batch=4100, l_max=128, max_prompt=64, cp=4) == 4096
    assert capacity_at(32, tokens_per_micro_batch=192, l_max=128, max_prompt=64, cp=4,
                       micro_bytes=lambda tokens, row: tokens * (100 + row)) == 256
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
    ledger = SimpleNamespace(group=np.array([0, 0]), reward=np.array([1, np.nan], np.float32),
                             prompt_length=np.array([5, 5]), response_length=np.array([7, 9]),
                             forced_length=np.array([0, 2]))
    rows = RowLengths.of(ledger)
    assert rows.sampled.tolist() == [7, 7]
    assert rows.fed.tolist() == [11, 13]
    assert rows.reward[0] == 1
    assert np.isnan(rows.reward[1])


def test_unequal_columns_are_refused():
    with pytest.raises(DataError, match="unequal length"):
        RowLengths(np.ones(3, int), np.ones(2, int), np.ones(3, int), np.ones(3))
