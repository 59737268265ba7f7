from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from siri_megatron.errors import DataError
from siri_megatron.estimate.lengths import R1_SIGMA, lognormal, named, of_samples

LENGTHS = lognormal(200, 0.8, prompt=10)


@given(st.integers(1, 2000), st.integers(1, 500))
def test_clipped_at_the_cap(cap: int, count: int) -> None:
    found = LENGTHS.responses(cap, count)
    assert (len(found), found.min() >= 1, found.max() <= cap) == (count, True, True)


@given(st.integers(1, 1000), st.integers(1, 1000))
def test_longer_caps_longer_responses(cap: int, more: int) -> None:
    assert (LENGTHS.responses(cap + more, 300) >= LENGTHS.responses(cap, 300)).all()
    assert LENGTHS.truncated(cap + more) <= LENGTHS.truncated(cap)


def test_deterministic() -> None:
    assert (LENGTHS.responses(300, 64) == LENGTHS.responses(300, 64)).all()


def test_as_drawn() -> None:
    """Evenly spread quantiles have the mean and the truncated share of lengths drawn from the distribution."""
    drawn = np.exp(np.random.default_rng(0).normal(np.log(200), 0.8, 200_000))
    for cap in (100, 300, 1000):
        assert LENGTHS.responses(cap, 1024).mean() == pytest.approx(np.minimum(drawn, cap).mean(), rel=0.01)
        assert LENGTHS.truncated(cap) == pytest.approx((drawn > cap).mean(), abs=0.005)


def test_order_says_nothing_about_length() -> None:
    found = LENGTHS.responses(10_000, 4096)
    assert abs(np.corrcoef(np.arange(4096), found)[0, 1]) < 0.05


def test_default_says_what_is_published_of_the_1_5b_model() -> None:
    """DeepScaleR on R1-Distill-Qwen-1.5B: about 42 % cut at 8192, 5.5 k tokens on average."""
    default = named("default", 16384, prompt=100)
    assert default
    assert default.truncated(8192) == pytest.approx(0.42, abs=0.03)
    assert default.responses(8192, 1024).mean() == pytest.approx(5500, rel=0.1)


@pytest.mark.parametrize(("name", "median"), [("r1", 595), ("lognormal:900", 900), ("lognormal:900:0.5", 900),
                                              ("full", 4096), ("default", 1638.4)])
def test_names(name: str, median: float) -> None:
    found = named(name, 4096, prompt=10)
    assert found
    assert (np.median(found.quantiles), found.measured) == (pytest.approx(median, rel=0.01), False)


@pytest.mark.parametrize("name", ["r2", "lognormal", "lognormal:x", "lognormal:-3", "lognormal:1:2:3", "full:3"])
def test_no_names(name: str) -> None:
    assert named(name, 4096, prompt=10) is None


def test_of_samples() -> None:
    values = np.random.default_rng(0).lognormal(5, R1_SIGMA, 20_000)
    found = of_samples(values.tolist(), prompt=7, origin="a file")
    assert (len(found.quantiles), found.measured, found.prompt) == (512, True, 7)
    assert found.responses(400, 512).mean() == pytest.approx(np.minimum(values, 400).mean(), rel=0.01)
    assert of_samples([5.0, 3.0], prompt=1, origin="x").quantiles == (3.0, 5.0)


@pytest.mark.parametrize("values", [[], [0.0], [3.0, -1.0], [float("nan")]])
def test_no_lengths(values: list[float]) -> None:
    with pytest.raises(DataError, match=r"a file: \d lengths"):
        of_samples(values, prompt=1, origin="a file")
