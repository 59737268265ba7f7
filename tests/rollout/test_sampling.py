"""Sampling seeds."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from siri_megatron.rollout.sampling import SEED_STRIDE, request_seed

place = st.tuples(st.integers(0, 5), st.sampled_from(["step-1", "step-11", "evaluation"]), st.integers(0, 300),
                  st.text(max_size=5))


@given(place, place)
def test_apart_and_everything_counts(a: tuple[int, str, int, str], b: tuple[int, str, int, str]) -> None:
    one, other = request_seed(*a), request_seed(*b)
    assert (one == other) == (a == b)
    assert one == other or abs(one - other) >= SEED_STRIDE


@given(place)
def test_fits(a: tuple[int, str, int, str]) -> None:
    assert 0 <= request_seed(*a) <= 2**63 - SEED_STRIDE


def test_the_same_in_every_process() -> None:
    """Python's own hash differs from process to process; resume rests on these not doing so."""
    assert request_seed(1, "step-0", 0, "p") == 6506830060398505984
