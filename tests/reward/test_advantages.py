from __future__ import annotations

from statistics import mean, stdev

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from siri_megatron.reward.advantages import (
    STD_GUARD,
    advantages,
    batch_std,
    group_mean,
    group_std,
    leave_one_out,
    uniform_groups,
    uniform_share,
)

KINDS = ["group_std", "group_mean", "batch_std", "leave_one_out"]
kinds = st.sampled_from(KINDS)
rewards_or_none = st.sampled_from([0.0, 0.1, 1.0, float("nan")])
verdicts = st.lists(st.tuples(st.integers(0, 4), rewards_or_none), min_size=1, max_size=40)


def columns(rows):
    return np.array([reward for _, reward in rows]), np.array([group for group, _ in rows]), np.ones(len(rows), bool)


def oracle(kind, rows):
    """Python's own statistics, row by row."""
    found = []
    for group, reward in rows:
        peers = [r for g, r in rows if g == group and r == r]
        if reward != reward or len(set(peers)) < 2:
            found.append(0.0)
        else:
            centred = reward - mean(peers)
            others = peers.copy()
            others.remove(reward)
            found.append({"group_std": centred / (stdev(peers) + STD_GUARD), "leave_one_out": reward - mean(others)}
                         .get(kind, centred))
    if kind == "batch_std":
        judged = [one for one, (_, reward) in zip(found, rows, strict=True) if reward == reward]
        found = [one / ((stdev(judged) if len(judged) > 1 else 0) + STD_GUARD) for one in found]
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
    assert leave_one_out([1, 0, 0, 0], [7, 7, 7, 7]) == pytest.approx([1, -1 / 3, -1 / 3, -1 / 3])


def test_batch_std_by_hand():
    """Group 0 is nearly uniform, group 1 mixed: one deviation for both, where the group's own blows group 0 up."""
    rewards, groups = [1, *[0] * 7, *[1] * 4, *[0] * 4], [0] * 8 + [1] * 8
    centred = np.array([0.875] + [-0.125] * 7 + [0.5] * 4 + [-0.5] * 4)
    got = batch_std(rewards, groups, [True] * 16)
    assert got == pytest.approx(centred / np.sqrt((centred**2).sum() / 15), abs=1e-5)
    assert group_std(rewards, groups)[0] / got[0] > 1.2 > 0.9 > group_std(rewards, groups)[8] / got[8]


@given(verdicts, st.randoms(use_true_random=False))
def test_batch_is_what_is_trained_on(rows, random):
    """A row that is not trained on keeps its group's mean but leaves the deviation."""
    rewards, groups, _ = columns(rows)
    trained = np.array([random.random() < 0.7 for _ in rows])
    centred = group_mean(rewards, groups)
    counted = centred[trained & ~np.isnan(rewards)].tolist()
    wanted = centred / ((stdev(counted) if len(counted) > 1 else 0) + STD_GUARD)
    assert batch_std(rewards, groups, trained) == pytest.approx(wanted, rel=1e-6, abs=1e-9)


@given(kinds, verdicts)
def test_zero_sum(kind, rows):
    rewards, groups, trained = columns(rows)
    got = advantages(kind, rewards, groups, trained)
    for group in set(groups.tolist()):
        assert got[groups == group].sum() == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize("kind", KINDS)
def test_uniform_groups_are_zero(kind):
    """0.1 x 7 has a mean that is not 0.1 in floats: the guard alone would leave noise of 1e-11."""
    rewards = [0.1] * 7
    assert np.mean(rewards) != 0.1
    assert advantages(kind, [*rewards, 1.0], [0] * 7 + [1], [True] * 8).tolist() == [0.0] * 8


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
    assert uniform_share([1, 1, 0, 1, nan, nan, 1, nan], [0, 0, 1, 1, 2, 2, 3, 3]) == 3 / 4
    assert uniform_share([], []) == 0
