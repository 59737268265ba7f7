"""Means over seeds with intervals, one-sided tests, and what a number of seeds can detect. Pure and deterministic.

A bootstrap of few pairs is too narrow: it lacks the factor sqrt(n / (n - 1)) and the heavier tail of t, so that of 12
normal pairs a 95% interval holds the mean in 91% of samples. It is therefore given beside a t interval, and a p is the
larger of the two methods' (tests/study/test_intervals.py measures both).

Invariants (tests/study/test_intervals.py has them by these names):
- inside: an interval contains the estimate.
- mirror: the p of the opposite direction on mirrored values is the same.
- few_decide_nothing: fewer than LEAST_PAIRS pairs have no p.
- holm_closed: a corrected p is that of the closed test by Bonferroni's inequality.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import mpmath
import numpy as np

from siri_megatron.report.compare import LEAST_PAIRS, RESAMPLES, bootstrap, resampled_means

Interval = tuple[float, float]
ALPHA = 0.025
"""One-sided; the intervals are two-sided 95%."""


@dataclass(frozen=True)
class Estimate:
    """Mean of paired differences (or of anything, over seeds)."""

    value: float
    sd: float | None
    """Over the pairs; None of one."""
    pairs: int
    bootstrap: Interval | None
    """95%, percentile; None of fewer than LEAST_PAIRS."""
    t: Interval | None
    """95%; None of one pair."""


def estimate(values: Sequence[float]) -> Estimate | None:
    """The mean with both intervals; None without values."""
    found = bootstrap(values, "seeds")
    if found is None:
        return None
    drawn = None if found.low is None or found.high is None else (found.low, found.high)
    return Estimate(found.value, deviation(values), len(values), drawn, t_interval(values))


def deviation(values: Sequence[float]) -> float | None:
    """Standard deviation of a sample; None of fewer than two."""
    return float(np.std(values, ddof=1)) if len(values) > 1 else None


def t_interval(values: Sequence[float]) -> Interval | None:
    """95% of the mean; None of fewer than two values."""
    sd, count = deviation(values), len(values)
    if sd is None:
        return None
    mean, half = float(np.mean(values)), t_quantile(1 - ALPHA, count - 1) * sd / math.sqrt(count)
    return mean - half, mean + half


def ratio(others: Sequence[float], ones: Sequence[float]) -> Estimate | None:
    """Geometric mean of other/one over the pairs, with the intervals of the mean log ratio.

    None without pairs, and where a value is not above 0. `sd` is that of the log ratio.
    """
    if any(value <= 0 for value in (*others, *ones)):
        return None
    found = estimate([math.log(b / a) for a, b in zip(ones, others, strict=True)])
    if found is None:
        return None
    drawn, t = (None if one is None else (math.exp(one[0]), math.exp(one[1])) for one in (found.bootstrap, found.t))
    return Estimate(math.exp(found.value), found.sd, found.pairs, drawn, t)


def p_above(values: Sequence[float], bound: float) -> float | None:
    """One-sided p of "the mean is not above bound": the larger of the paired t test's and the bootstrap's.

    The bootstrap's is the share of resampled means at or below the bound, (1 + them)/(1 + all). None of too few pairs.
    """
    if len(values) < LEAST_PAIRS:
        return None
    away = np.asarray(values, np.float64) - bound
    error = float(away.std(ddof=1)) / math.sqrt(len(away))
    mean = float(away.mean())
    by_t = 1 - t_cdf(mean / error, len(away) - 1) if error > 0 else float(mean <= 0)
    drawn = (1 + int((resampled_means(away, 0) <= 0).sum())) / (1 + RESAMPLES)
    return max(by_t, drawn)


def p_below(values: Sequence[float], bound: float) -> float | None:
    """One-sided p of "the mean is not below bound"."""
    return p_above([-value for value in values], -bound)


def holm(p: Sequence[float]) -> list[float]:
    """Holm's (1979) corrected p: at or below alpha where the step-down procedure at level alpha rejects."""
    corrected, highest = [0.0] * len(p), 0.0
    for rank, index in enumerate(sorted(range(len(p)), key=lambda one: p[one])):
        highest = max(highest, min(1.0, (len(p) - rank) * p[index]))
        corrected[index] = highest
    return corrected


def t_cdf(value: float, freedom: int) -> float:
    """Distribution function of Student's t."""
    tail = float(mpmath.betainc(freedom / 2, 0.5, 0, freedom / (freedom + value * value), regularized=True)) / 2
    return 1 - tail if value > 0 else tail


@cache
def t_quantile(share: float, freedom: int) -> float:
    """Its inverse, by bisection to 1e-9 for shares of 1e-6 to 1 - 1e-6."""
    low, high = -1e6, 1e6
    while high - low > 1e-9 * max(1.0, abs(low)):
        middle = (low + high) / 2
        low, high = (middle, high) if t_cdf(middle, freedom) < share else (low, middle)
    return (low + high) / 2


def power(effect: float, pairs: int, alpha: float = ALPHA) -> float:
    """Chance that a one-sided t test finds an effect, given in standard deviations of the paired difference.

    The noncentral t tail, P(Z + effect sqrt(n) > c S) with S = sqrt(chi2/freedom), integrated over chi2 on a grid.
    """
    freedom = pairs - 1
    critical = t_quantile(1 - alpha, freedom)
    grid = np.linspace(0, freedom + 12 * math.sqrt(2 * freedom) + 40, 4002)[1:]
    density = np.exp((freedom / 2 - 1) * np.log(grid) - grid / 2)
    shift, root = effect * math.sqrt(pairs), math.sqrt(2)
    above = [math.erfc((critical * s - shift) / root) / 2 for s in np.sqrt(grid / freedom)]
    return float(np.sum(density * above) / np.sum(density))


def detectable(pairs: int, alpha: float = ALPHA, chance: float = 0.8) -> float:
    """The smallest effect that is found with this chance, in standard deviations of the paired difference."""
    low, high = 0.0, 20.0
    for _ in range(30):
        middle = (low + high) / 2
        low, high = (middle, high) if power(middle, pairs, alpha) < chance else (low, middle)
    return high
