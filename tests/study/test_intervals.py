"""Intervals, p, Holm and power, against enumerations, plain integrals and simulations."""

from __future__ import annotations

import math
from itertools import chain, combinations, product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from siri_megatron.report import compare
from siri_megatron.study import intervals
from siri_megatron.study.intervals import (
    detectable,
    estimate,
    holm,
    p_above,
    p_below,
    power,
    ratio,
    t_cdf,
    t_quantile,
)

VALUES = st.lists(st.floats(-1, 1), min_size=5, max_size=16)


@pytest.fixture
def few_resamples(monkeypatch):
    """For simulations: the rule is the same, its resolution coarser."""
    for module in (compare, intervals):
        monkeypatch.setattr(module, "RESAMPLES", 1000)


def plain_t_cdf(value: float, freedom: int) -> float:
    """By the trapezoid rule over the density."""
    grid = np.linspace(-400, value, 400_001)
    density = (1 + grid**2 / freedom) ** (-(freedom + 1) / 2)
    scale = math.gamma((freedom + 1) / 2) / (math.sqrt(freedom * math.pi) * math.gamma(freedom / 2))
    return float(np.trapezoid(density, grid)) * scale


@pytest.mark.parametrize("freedom", [4, 11, 19])
@pytest.mark.parametrize("value", [-2.5, 0.0, 0.7, 3.1])
def test_t_is_the_integral_of_its_density(freedom, value):
    assert math.isclose(t_cdf(value, freedom), plain_t_cdf(value, freedom), abs_tol=1e-6)


@pytest.mark.parametrize(("share", "freedom", "printed"), [
    (0.975, 11, 2.201), (0.995, 11, 3.106), (0.975, 2, 4.303), (0.9, 1, 3.078), (0.025, 11, -2.201), (0.5, 7, 0.0)])
def test_quantiles_are_those_of_printed_tables(share, freedom, printed):
    assert math.isclose(t_quantile(share, freedom), printed, abs_tol=6e-4)


def test_estimate_is_the_plain_one():
    values = [0.1, 0.3, -0.2, 0.4, 0.25, 0.0]
    found = estimate(values)
    mean = sum(values) / 6
    sd = math.sqrt(sum((value - mean) ** 2 for value in values) / 5)
    assert math.isclose(found.value, mean)
    assert math.isclose(found.sd, sd)
    assert math.isclose(found.t[1] - mean, 2.5706 * sd / math.sqrt(6), rel_tol=1e-4)
    assert found.pairs == 6
    assert estimate([]) is None
    assert estimate([2.0]).t is None


def test_coverage_of_twelve_pairs(few_resamples):
    """Why a bootstrap does not decide alone: of 12 normal pairs its 95% interval holds the mean in 91% of samples."""
    generator = np.random.default_rng(0)
    held = {"bootstrap": 0, "t": 0}
    for _ in range(1000):
        found = estimate(list(generator.normal(0.3, 1, 12)))
        held["bootstrap"] += found.bootstrap[0] <= 0.3 <= found.bootstrap[1]
        held["t"] += found.t[0] <= 0.3 <= found.t[1]
    assert 0.89 <= held["bootstrap"] / 1000 <= 0.935
    assert 0.935 <= held["t"] / 1000 <= 0.965


@pytest.mark.parametrize("shape", ["normal", "skewed", "heavy"])
def test_false_alarms_are_at_most_nominal(few_resamples, shape):
    """With no effect p < 0.025 in about 2.5% of samples of 12, also where differences are not normal.

    A skew to one side costs one direction what it gives to the other, so both are counted.
    """
    generator = np.random.default_rng(1)
    draw = {"normal": lambda: generator.normal(0, 1, 12), "skewed": lambda: generator.gamma(4, 1, 12) - 4,
            "heavy": lambda: generator.standard_t(4, 12)}[shape]
    false = 0
    for _ in range(500):
        values = list(draw())
        false += (p_above(values, 0) < 0.025) + (p_below(values, 0) < 0.025)
    assert false / 500 <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / 500)
    assert false > 8  # negative control: a p that is never small would pass the line above


@pytest.mark.parametrize("shift", [0.0, 0.3, 0.8])
def test_p_is_near_that_of_all_sign_flips(shift):
    """Fisher's test of the same null, all 1,024 flips written out."""
    values = np.random.default_rng(2).normal(shift, 1, 10)
    flips = [np.mean(values * signs) for signs in product((1, -1), repeat=10)]
    exact = np.mean([flip >= values.mean() - 1e-12 for flip in flips])
    assert abs(p_above(list(values), 0) - exact) < 0.03


def test_p_is_the_larger_of_both_methods():
    values = [0.02, 0.05, -0.01, 0.03, 0.04, 0.06, 0.01]
    mean, sd = float(np.mean(values)), float(np.std(values, ddof=1))
    by_t = 1 - plain_t_cdf((mean - 0.01) / (sd / math.sqrt(7)), 6)
    means = [sum(resample) / 7 for resample in product(values, repeat=7)]
    drawn = sum(one <= 0.01 + 1e-12 for one in means) / len(means)
    assert drawn < by_t
    assert math.isclose(p_above(values, 0.01), by_t, abs_tol=1e-5)
    one_far = [0.1, 0.1, 0.1, 0.1, 0.1, 0.1001]  # hardly any spread: the bootstrap's resolution is the larger p
    assert math.isclose(p_above(one_far, 0), 1 / 10_001)


@given(VALUES)
def test_inside(values):
    found = estimate(values)
    assert found.t[0] <= found.value <= found.t[1]
    assert found.bootstrap[0] <= found.value <= found.bootstrap[1]


@given(VALUES, st.floats(-0.5, 0.5))
def test_mirror(values, bound):
    assert math.isclose(p_above(values, bound), p_below([-value for value in values], -bound))


def test_few_decide_nothing():
    assert p_above([1.0, 1.1, 0.9, 1.0], 0) is None
    assert p_above([1.0, 1.1, 0.9, 1.0, 1.0], 0) is not None


def test_without_spread():
    assert p_above([0.1] * 6, 0) < 0.001
    assert p_above([0.0] * 6, 0) == 1
    assert p_below([0.1] * 6, 0) == 1


@given(st.lists(st.floats(0, 1), min_size=1, max_size=6))
def test_holm_closed(p):
    """The closed test written out: a hypothesis falls if Bonferroni rejects every set that holds it."""
    everything = list(chain.from_iterable(combinations(range(len(p)), size) for size in range(1, len(p) + 1)))
    for index, found in enumerate(holm(p)):
        closed = max(min(1.0, len(each) * min(p[one] for one in each)) for each in everything if index in each)
        assert math.isclose(found, closed, abs_tol=1e-12)


def test_holm_of_a_printed_example():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.01, 0.04, 0.03, 0.005]) != pytest.approx([0.01, 0.04, 0.03, 0.005])  # negative control


def test_ratio_is_the_geometric_mean():
    found = ratio([30.0, 36.0, 20.0, 27.0, 33.0], [40.0, 48.0, 40.0, 36.0, 44.0])
    assert math.isclose(found.value, (0.75**4 * 0.5) ** 0.2)
    assert found.t[0] < found.value < found.t[1]
    assert ratio([1.0], [0.0]) is None
    assert ratio([], []) is None


@pytest.mark.parametrize(("effect", "pairs"), [(0.6, 12), (1.0, 8), (0.9, 12)])
def test_power_is_that_of_simulated_tests(effect, pairs):
    drawn = np.random.default_rng(3).normal(effect, 1, (40_000, pairs))
    t = drawn.mean(axis=1) / (drawn.std(axis=1, ddof=1) / math.sqrt(pairs))
    assert abs(power(effect, pairs) - float(np.mean(t > t_quantile(0.975, pairs - 1)))) < 0.01


def test_power_without_an_effect_is_the_level():
    assert math.isclose(power(0, 12), 0.025, abs_tol=1e-3)


def test_detectable_has_the_chance_asked_for():
    assert math.isclose(power(detectable(12), 12), 0.8, abs_tol=1e-3)
    assert math.isclose(detectable(12), 0.889, abs_tol=2e-3)
    assert detectable(12, alpha=0.025 / 4) > detectable(12) > detectable(16)
