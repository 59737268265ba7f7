"""The planner's benchmark: what it compares with is what it says, and it runs from end to end. No assertion on time."""

from __future__ import annotations

import json
import subprocess
import sys
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

BENCH = Path(__file__).resolve().parents[2] / "tools" / "bench"
CASE = {"distribution", "cap", "capacity", "dp", "multiple", "fill", "of_bound", "imbalance", "even", "missed", "ms",
        "ffd_of_bound", "ffd_imbalance", "ffd_ms", "kk_of_bound", "kk_imbalance", "kk_ms"}
CAPACITY = 100
rows = st.lists(st.integers(1, CAPACITY), min_size=1, max_size=7).map(lambda found: np.sort(found)[::-1])


def packers() -> Any:
    sys.path.insert(0, str(BENCH))
    import packers as module
    return module


def fewest(lengths: list[int], bins: tuple[int, ...] = ()) -> int:
    """Brute force: every row into every bin that has room, or into a new one."""
    if not lengths:
        return len(bins)
    first, *rest = lengths
    options = [(*bins[:i], load + first, *bins[i + 1:]) for i, load in enumerate(bins) if load + first <= CAPACITY]
    return min(fewest(rest, option) for option in [*options, (*bins, first)])


@given(rows)
def test_no_packing_passes_the_bound(lengths: np.ndarray) -> None:
    assert packers().fewest_bins(lengths, CAPACITY) <= fewest(lengths.tolist())


def test_the_bound_sees_what_the_sum_does_not() -> None:
    """Rows just above a half, and above a third, of the capacity; a sum alone would allow fewer bins."""
    for length, wanted in ((51, 12), (34, 6)):
        assert packers().fewest_bins(np.full(12, length), CAPACITY) == wanted > -(-12 * length // CAPACITY)


@given(rows)
def test_first_fit_is_first_fit(lengths: np.ndarray) -> None:
    bins: list[int] = []
    for length, number in zip(lengths.tolist(), packers().first_fit(lengths, CAPACITY).tolist(), strict=True):
        bins += [0] * (number == len(bins))
        assert number == min((i for i, load in enumerate(bins) if load + length <= CAPACITY), default=len(bins))
        bins[number] += length


@given(rows, st.integers(2, 3))
def test_differencing_is_near_the_best_partition(lengths: np.ndarray, ranks: int) -> None:
    """Brute force over all partitions: within 4/3 - 1/(3 ranks) of the best, as Karmarkar-Karp is known to be."""
    dealt = packers().karmarkar_karp(lengths.astype(float), ranks)
    best = min(max(np.bincount(choice, lengths, ranks)) for choice in product(range(ranks), repeat=len(lengths)))
    assert best <= np.bincount(dealt, lengths, ranks).max() <= (4 / 3 - 1 / (3 * ranks)) * best + 1e-9


@pytest.mark.parametrize("measured", [pytest.param(False, marks=pytest.mark.soak), True])
def test_runs_end_to_end(tmp_path: Path, measured: bool) -> None:
    (tmp_path / "lengths.json").write_text('{"quantiles": [100, 200, 400, 1000]}')
    command = [sys.executable, str(BENCH / "planner.py"), "--caps", "300", "--samples", "64", "--sizes", "64",
               "128", "--json", str(tmp_path / "figures.json")]
    if measured:
        command += ["--lengths", str(tmp_path / "lengths.json")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    assert "plans miss a target" in done.stdout
    figures = json.loads((tmp_path / "figures.json").read_text())
    assert all(case.keys() == CASE for case in figures["cases"])
    assert len({(case["distribution"], case["cap"], case["capacity"], case["dp"], case["multiple"])
                for case in figures["cases"]}) == len(figures["cases"]) > 100
    assert all(0 < case["fill"] <= 1 <= case["of_bound"] and case["imbalance"] >= -1e-9 for case in figures["cases"])
    assert [row["rows"] for row in figures["speed"]] == [64, 128]
    assert all(row["padding"] <= row["padding_equal_counts"] for row in figures["buckets"])


def test_measured_lengths_are_cut_and_not_scaled() -> None:
    sys.path.insert(0, str(BENCH))
    from lengths import R1_QUANTILES, measured_lengths
    drawn = measured_lengths(np.array(R1_QUANTILES, np.float64), 2048, 20000, np.random.default_rng(0))
    assert drawn.max() == 2048
    assert np.median(drawn) == pytest.approx(R1_QUANTILES[32], rel=0.03)
    assert sorted(R1_QUANTILES) == list(R1_QUANTILES)
