from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rule_rows import NAN, budget, rows_of, tables

from siri_megatron.config import LaserDConfig
from siri_megatron.reward.laser_d import DIFFICULTIES, LaserD, difficulties, needed, paid, target

EACH_STEP = LaserDConfig(every_steps=1)


def brute_target(lengths, needed):
    """Try every length upwards until the expected number of covered right answers of a group reaches one."""
    for candidate in range(1, max(lengths) + 1):
        coverage = sum(length <= candidate for length in lengths) / len(lengths)
        if coverage * needed >= 1 - 1e-12:
            return candidate
    raise AssertionError("the longest length covers everything")


def test_the_papers_groups_of_8():
    """k = 8: an easy group has at least floor(16/3) = 5 right ones, a medium one floor(8/3) = 2, a hard one 1."""
    assert needed(8) == {"easy": 5, "medium": 2, "hard": 1}
    assert needed(2) == {"easy": 1, "medium": 1, "hard": 1}


def test_target_by_hand():
    """Ten lengths 10, 20 .. 100. Easy needs a fifth of them: 20. Medium half: 50. Hard all: 100."""
    lengths = list(range(100, 0, -10))
    assert [target(lengths, needed(8)[name]) for name in DIFFICULTIES] == [20, 50, 100]
    assert target([], 5) is None


@given(st.lists(st.integers(1, 60), min_size=1, max_size=40), st.integers(1, 12))
def test_smallest_that_covers(lengths, enough):
    assert target(lengths, enough) == brute_target(lengths, enough)


@given(st.lists(st.integers(1, 60), min_size=1, max_size=40), st.integers(2, 32))
def test_harder_has_more_room(lengths, group_size):
    easy, medium, hard = (target(lengths, needed(group_size)[name]) for name in DIFFICULTIES)
    assert easy <= medium <= hard == max(lengths)


def test_difficulties_by_hand():
    """2/3 is easy, 1/3 is medium; failed verifications leave the share, a group of failures has none."""
    table = [(9, 9, 0, 1), (9, 9, 0, 1), (9, 9, 0, 0), (9, 9, 1, 1), (9, 9, 1, 0), (9, 9, 1, 0), (9, 9, 2, 1),
             (9, 9, 2, 0), (9, 9, 2, 0), (9, 9, 2, 0), (9, 9, 3, 1), (9, 9, 3, NAN), (9, 9, 4, NAN)]
    assert difficulties(rows_of(table)).tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2, 2, 0, 0, -1]


@given(tables)
def test_difficulties(table):
    found = difficulties(rows_of(table))
    for row, (_, _, group, _) in enumerate(table):
        verdicts = [verdict for _, _, other, verdict in table if other == group and not math.isnan(verdict)]
        share = verdicts.count(1.0) / len(verdicts) if verdicts else None
        assert found[row] == (-1 if share is None else 0 if share >= 2 / 3 else 1 if share >= 1 / 3 else 2)


def test_a_step_by_hand():
    """One easy group of 3 (C = 2): lengths 8, 20, 30; half of them must fit, so two: L_A = 20."""
    rows = rows_of([(8, 64, 0, 1), (20, 64, 0, 1), (30, 64, 0, 1)])
    rule = LaserD(EACH_STEP, 3)
    assert rule.shape(rows, rows.verdict, budget()).tolist() == [1.5, 1.5, 1.5]  # nothing is known yet
    rule.observe(rows)
    assert rule.figures() == {"laser_d_easy": 20, "laser_d_medium": None, "laser_d_hard": None}
    assert rule.shape(rows, rows.verdict, budget()).tolist() == [1.5, 1.5, 1.0]


def test_coverage_is_over_all_responses():
    """As in the paper's repository: a wrong response of 64 tokens counts too. One of three right: medium, C = 1."""
    rows = rows_of([(8, 64, 0, 1), (64, 64, 0, 0), (64, 64, 0, 0)])
    rule = LaserD(EACH_STEP, 3)
    rule.observe(rows)
    assert rule.figures()["laser_d_medium"] == 64


def test_estimated_every_so_many_steps():
    rule = LaserD(LaserDConfig(every_steps=3), 3)
    seen = []
    for step in range(7):
        seen.append(rule.figures()["laser_d_easy"])
        rule.observe(rows_of([(10 + step, 64, 0, 1)]))
    assert seen == [None, None, None, 11, 11, 11, 12]  # C = 2: half of 10, 11, 12 must fit; half of 10 .. 15


@given(tables, st.tuples(*[st.none() | st.integers(1, 80)] * 3))
def test_formula(table, targets):
    rows, by_name = rows_of(table), dict(zip(DIFFICULTIES, targets, strict=True))
    found = paid(rows, by_name, 0.5)
    for row, (length, _, _, verdict) in enumerate(table):
        allowed = targets[difficulties(rows)[row]] if verdict == 1 else None
        assert found[row] == (0.5 if verdict == 1 and (allowed is None or length <= allowed) else 0)


@given(tables, st.tuples(*[st.integers(1, 80)] * 3))
def test_right_alone_is_paid(table, targets):
    rows = rows_of(table)
    added = paid(rows, dict(zip(DIFFICULTIES, targets, strict=True)), 0.5)
    assert np.all(added[rows.verdict != 1] == 0)
    assert set(added.tolist()) <= {0.0, 0.5}


@given(tables, st.tuples(*[st.integers(1, 80)] * 3))
def test_within_is_paid(table, targets):
    """Of two right responses of a group the shorter never gets less."""
    rows = rows_of(table)
    added = paid(rows, dict(zip(DIFFICULTIES, targets, strict=True)), 0.5)
    for a in np.flatnonzero(rows.verdict == 1):
        for b in np.flatnonzero((rows.verdict == 1) & (rows.group == rows.group[a])):
            assert rows.length[a] > rows.length[b] or added[a] >= added[b]


@given(st.lists(tables, max_size=6))
def test_bounded_state(steps):
    rule = LaserD(LaserDConfig(every_steps=2, window=7), 4)
    seen = {name: [] for name in DIFFICULTIES}
    for table in steps:
        rows = rows_of(table)
        for length, which in zip(rows.length.tolist(), difficulties(rows).tolist(), strict=True):
            if which >= 0:
                seen[DIFFICULTIES[which]].append(length)
        rule.observe(rows)
    kept = rule.state()["lengths"]
    for name in DIFFICULTIES:
        assert kept[name] == seen[name][-7:]


@pytest.mark.parametrize(("needed_right", "expected"), [(1, 40), (4, 10)])
def test_negative_control_without_difficulty_all_groups_had_one_target(needed_right, expected):
    assert target([10, 20, 30, 40], needed_right) == expected
