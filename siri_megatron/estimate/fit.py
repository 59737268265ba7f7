"""Fitting rates to measured steps. Pure.

Seconds are work times rates, so rates come from a linear least-squares fit, none of them negative, of a step's relative
error. Steps that something else slowed down are the rule on a shared machine and make a least-squares fit too slow, so
steps are weighted again and again by their last error (iteratively reweighted towards least absolute error).

Invariants:
- nnls_is_exact: no other non-negative rates have a smaller sum of squares. There are few columns, so every choice of
  those above zero is tried: at the best point it is the plain least-squares solution of its own columns.
- exact_data_exact_rates: seconds that are made of some rates give those rates back.
- outliers_do_not_move_it: a few slow steps change the rates little.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

Matrix = NDArray[np.float64]
ROUNDS = 40
SMALLEST = 1e-3
"""Relative error below which steps weigh the same."""


def nnls(columns: Matrix, values: Matrix) -> Matrix:
    """[k] non-negative coefficients x with the least |columns x - values|^2. columns: [n, k], k small; values: [n]."""
    count = columns.shape[1]
    best, least = np.zeros(count), float(values @ values)
    for chosen in _subsets(count):
        solved = np.linalg.lstsq(columns[:, chosen], values, rcond=None)[0]
        if (solved < 0).any():
            continue
        error = float(np.sum((columns[:, chosen] @ solved - values) ** 2))
        if error < least * (1 - 1e-12):
            best, least = np.zeros(count), error
            best[list(chosen)] = solved
    return best


def fit_rates(work: Matrix, seconds: Matrix) -> Matrix:
    """[k] seconds per unit of work with about the least mean |relative error|.

    Args:
        work: [steps, k] units of each kind of work.
        seconds: [steps] measured, positive.
    """
    scale = np.where(work.max(0) > 0, work.max(0), 1.0)
    rows = work / scale / seconds[:, None]
    weights = np.ones(len(seconds))
    rates = np.zeros(work.shape[1])
    for _ in range(ROUNDS):
        root = np.sqrt(weights)
        rates = nnls(rows * root[:, None], root)
        weights = 1 / np.maximum(np.abs(rows @ rates - 1), SMALLEST)
    return rates / scale


def relative_errors(work: Matrix, seconds: Matrix, rates: Matrix) -> Matrix:
    """[steps] predicted over measured, less 1."""
    return np.asarray(work @ rates / seconds - 1)


def survival_quantiles(lengths: NDArray[np.int64], cut: NDArray[np.bool_], points: int, beyond: float
                       ) -> NDArray[np.float64]:
    """[points] equal-mass quantiles of uncut lengths out of lengths of which some are cut (Kaplan and Meier, 1958).

    Args:
        lengths: [n] tokens; cut: [n] the response would have gone on.
        beyond: length for the mass that no sample says more of than that it is longer.
    """
    values = np.unique(lengths[~cut])
    at_risk = len(lengths) - np.searchsorted(np.sort(lengths), values)
    ended = np.searchsorted(np.sort(lengths[~cut]), values, "right") - np.searchsorted(np.sort(lengths[~cut]), values)
    share_ended = 1 - np.cumprod(1 - ended / at_risk)  # [values] share of responses of at most that length
    wanted = (np.arange(points) + 0.5) / points
    place = np.searchsorted(share_ended, wanted)
    return np.where(place < len(values), np.append(values, beyond)[place], beyond).astype(np.float64)


def _subsets(count: int) -> Iterable[tuple[int, ...]]:
    return (chosen for size in range(1, count + 1) for chosen in combinations(range(count), size))
