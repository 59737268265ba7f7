from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from siri_megatron.config import DotConfig
from siri_megatron.reward.dot import outliers

PAPER = DotConfig()
groups = st.lists(st.integers(1, 3000), min_size=1, max_size=24)


def plain(lengths, multiplier, margin):
    """T and who is cut, written out: the deviation with n - 1."""
    n = len(lengths)
    mean = sum(lengths) / n
    deviation = math.sqrt(sum((length - mean) ** 2 for length in lengths) / (n - 1))
    limit = int(mean + multiplier * deviation)
    return limit, [i for i in range(n) if lengths[i] - limit >= margin]


def test_by_hand():
    """Fifteen of 100 tokens and one of 1700: mean 200, sample deviation 400, T = 1400; 300 above it is cut."""
    assert outliers([100] * 15 + [1700], [1.0] * 16, PAPER) == (1400, [15])


def test_sample_and_not_population_deviation():
    """The population's deviation of the same lengths is 387.3: T would be 1361."""
    assert int(200 + 3 * np.std([100] * 15 + [1700])) == 1361


def test_the_margin_is_met_exactly():
    lengths = [100] * 15 + [1700]
    assert outliers(lengths, [1.0] * 16, DotConfig(margin=300))[1] == [15]
    assert outliers(lengths, [1.0] * 16, DotConfig(margin=301))[1] == []


@given(groups, st.floats(0.5, 4), st.integers(1, 100))
def test_formula(lengths, multiplier, margin):
    limit, cut = outliers(lengths, [1.0] * len(lengths), DotConfig(std_multiplier=multiplier, margin=margin))
    if len(lengths) > 1:
        expected, chosen = plain(lengths, multiplier, margin)
        assert abs(limit - expected) <= 1  # exact fractions against floats: they may differ at a whole number
        assert limit != expected or cut == chosen
    else:
        assert cut == []


@pytest.mark.parametrize("spoiler", [0.0, math.nan])
def test_all_right_only(spoiler):
    rewards = [1.0] * 15 + [spoiler]
    assert outliers([100] * 15 + [1700], rewards, PAPER)[1] == []
    assert outliers([1700] + [100] * 15, rewards, PAPER)[1] == []


@given(groups, st.floats(0.1, 4), st.integers(1, 100))
def test_outliers_only(lengths, multiplier, margin):
    limit, cut = outliers(lengths, [1.0] * len(lengths), DotConfig(std_multiplier=multiplier, margin=margin))
    assert all(lengths[number] >= limit + margin for number in cut)
    assert len(cut) < len(lengths)


@given(groups, st.floats(0.1, 4))
def test_never_empty(lengths, multiplier):
    limit, _ = outliers(lengths, [1.0] * len(lengths), DotConfig(std_multiplier=multiplier))
    assert limit >= math.floor(sum(lengths) / len(lengths)) >= 1


@given(st.lists(st.integers(1, 100000), min_size=2, max_size=10))
def test_groups_of_ten_are_never_cut_at_three(lengths):
    """(n - 1)/sqrt(n) is below 3 up to 10: what the config refuses is refused rightly."""
    assert outliers(lengths, [1.0] * len(lengths), PAPER)[1] == []


def test_negative_control_groups_of_eleven_can_be():
    assert outliers([1] * 10 + [100000], [1.0] * 11, PAPER)[1] == [10]
