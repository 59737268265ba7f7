from __future__ import annotations

from statistics import mean, stdev

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from siri_megatron.reward.advantages import STD_GUARD, advantages, group_mean, group_std, uniform_groups

kinds = st.sampled_from(["group_std", "group_mean"])
rewards_or_none = st.sampled_from([0.0, 0.1, 1.0, float("nan")])
verdicts = st.lists(st.tuples(st.integers(0, 4), rewards_or_none), min_size=1, max_size=40)


def columns(rows):
    return np.array([reward for _, reward in rows]), np.array([group for group, _ in rows])


def oracle(kind, rows):
    """Python's own statistics, row by row."""
    found = []
    for group, reward in rows:
        peers = [r for g, r in rows if g == group and r == r]
        if reward != reward or len(set(peers)) < 2:
            found.append(0.0)
        else:
            centred = reward - mean(peers)
            found.append(centred if kind == "group_mean" else centred / (stdev(peers) + STD_GUARD))
    return found


@given(kinds, verdicts)
def test_against_the_statistics_module(kind, rows):
    assert advantages(kind, *columns(rows)) == pytest.approx(oracle(kind, rows), abs=1e-9)


def test_by_hand():
    """Rewards 1 0 0 0: mean 1/4, sample deviation 1/2 (the population one would be 0.433)."""
    got = group_std([1, 0, 0, 0], [7, 7, 7, 7])
    assert got == pytest.approx([1.5, -0.5, -0.5, -0.5], abs=1e-5)
    assert got != pytest.approx(np.array([0.75, -0.25, -0.25, -0.25]) / 0.4330127, abs=1e-3)
    assert group_mean([1, 0, 0, 0], [7, 7, 7, 7]) == pytest.approx([0.75, -0.25, -0.25, -0.25])


@given(kinds, verdicts)
def test_zero_sum(kind, rows):
    rewards, groups = columns(rows)
    got = advantages(kind, rewards, groups)
    for group in set(groups.tolist()):
        assert got[groups == group].sum() == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize("kind", ["group_std", "group_mean"])
def test_uniform_groups_are_zero(kind):
    """0.1 x 7 has a mean that is not 0.1 in floats: the guard alone would leave noise of 1e-11."""
    rewards = [0.1] * 7
    assert np.mean(rewards) != 0.1
    assert advantages(kind, [*rewards, 1.0], [0] * 7 + [1]).tolist() == [0.0] * 8


@given(kinds, verdicts, st.randoms(use_true_random=False))
def test_order_free(kind, rows, random):
    order = list(range(len(rows)))
    random.shuffle(order)
    straight = advantages(kind, *columns(rows))
    mixed = advantages(kind, *columns([rows[at] for at in order]))
    assert mixed == pytest.approx(straight[order], abs=1e-12)


@given(kinds, verdicts)
def test_unaffected_by_failures(kind, rows):
    judged = [row for row in rows if row[1] == row[1]]
    got = advantages(kind, *columns(rows))
    assert got[[row[1] == row[1] for row in rows]] == pytest.approx(advantages(kind, *columns(judged)), abs=1e-12)
    assert not np.isnan(got).any()


def test_uniform_groups():
    nan = float("nan")
    assert uniform_groups([1, 1, 0, 1, nan, nan, 1, nan], [0, 0, 1, 1, 2, 2, 3, 3]).tolist() == [
        True, True, False, False, True, True, True, True]
