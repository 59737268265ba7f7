"""The fit against other ways to find the least squares, and the lengths under a cap against the uncut ones."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from siri_megatron.estimate.fit import fit_rates, nnls, relative_errors, survival_quantiles


def projected_gradient(columns: np.ndarray, values: np.ndarray, rounds: int = 5_000) -> np.ndarray:
    """Non-negative least squares by small steps: slow, and nothing to get wrong."""
    found = np.zeros(columns.shape[1])
    step = 1 / np.linalg.norm(columns.T @ columns, 2)
    for _ in range(rounds):
        found = np.maximum(0.0, found - step * columns.T @ (columns @ found - values))
    return found


@pytest.mark.parametrize("seed", range(8))
def test_nnls_is_exact(seed: int) -> None:
    rng = np.random.default_rng(seed)
    columns, values = rng.normal(size=(20, 3)), rng.normal(size=20)
    found, slow = nnls(columns, values), projected_gradient(columns, values)
    assert (found >= 0).all()
    assert found == pytest.approx(slow, abs=1e-6)


def test_negative_control_plain_least_squares_goes_below_zero() -> None:
    columns, values = np.array([[1.0, 1.0], [1.0, 2.0], [1.0, 3.0]]), np.array([3.0, 2.0, 1.0])
    assert (np.linalg.lstsq(columns, values, rcond=None)[0] < 0).any()
    assert (nnls(columns, values) >= 0).all()


@given(st.lists(st.floats(0.0, 5.0), min_size=3, max_size=3).filter(lambda rates: sum(rates) > 0.1))
@settings(max_examples=30, deadline=None)
def test_exact_data_exact_rates(rates: list[float]) -> None:
    work = np.random.default_rng(1).uniform(1, 1e6, (12, 3)) * np.array([1e9, 1.0, 1e-3])
    true = np.array(rates) / work.max(0)
    seconds = work @ true
    assert work @ fit_rates(work, seconds) == pytest.approx(seconds, rel=1e-6)


def test_outliers_do_not_move_it() -> None:
    rng = np.random.default_rng(3)
    work = rng.uniform(1, 10, (24, 2))
    seconds = work @ np.array([0.2, 0.05])
    seconds[[4, 9, 17]] *= 6  # something else had the machine
    found = fit_rates(work, seconds)
    assert found == pytest.approx([0.2, 0.05], rel=0.02)
    plain = nnls(work / seconds[:, None], np.ones(24))
    assert plain != pytest.approx([0.2, 0.05], rel=0.02)  # negative control
    assert np.median(np.abs(relative_errors(work, seconds, found))) < 0.01


@pytest.mark.parametrize("caps", [(400,), (100, 200, 400), (60, 400)])
def test_lengths_under_caps_tell_the_uncut_ones(caps: tuple[int, ...]) -> None:
    uncut = np.random.default_rng(0).integers(1, 301, 30_000)
    cap = np.resize(caps, len(uncut))
    found = survival_quantiles(np.minimum(uncut, cap), uncut > cap, 100, 999.0)
    assert found == pytest.approx(np.quantile(uncut, (np.arange(100) + 0.5) / 100), abs=6)
    naive = np.quantile(np.minimum(uncut, cap), (np.arange(100) + 0.5) / 100)
    if len(caps) > 1:
        assert np.abs(naive - found).max() > 30  # negative control: taking cut lengths as they are


def test_what_nobody_saw_end_is_beyond() -> None:
    found = survival_quantiles(np.array([1, 2, 3, 4, 4, 4, 4, 4]), np.array([False] * 3 + [True] * 5), 8, 99.0)
    assert found.tolist() == [1, 2, 3, 99, 99, 99, 99, 99]
