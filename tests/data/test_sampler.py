"""The order of prompts."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from siri_megatron.data.sampler import PromptSampler

n_, seed_, count_ = st.integers(1, 50), st.integers(0, 9), st.integers(1, 60)


@given(n_, seed_, count_)
def test_each_once_an_epoch(n: int, seed: int, count: int) -> None:
    sampler = PromptSampler(n, seed)
    stream = [i for step in range(-(-3 * n // count)) for i in sampler.take(step, count)]
    for epoch in range(3):
        assert sorted(stream[epoch * n:(epoch + 1) * n]) == list(range(n))


@given(n_, seed_, count_, st.lists(st.integers(0, 30), max_size=8))
def test_pure(n: int, seed: int, count: int, steps: list[int]) -> None:
    """There is no cursor that runs ahead of training and loses what was in flight (NeMo-RL#3594)."""
    used = PromptSampler(n, seed)
    for step in steps:
        assert used.take(step, count) == PromptSampler(n, seed).take(step, count)


@given(n_, seed_, count_, st.integers(0, 40))
def test_seamless(n: int, seed: int, count: int, step: int) -> None:
    """Also when a run resumes exactly at the end of an epoch (verl PR #5725: zero steps, and success)."""
    taken = PromptSampler(n, seed).take(step, count)
    assert len(taken) == count
    assert max(Counter(taken).values()) <= -(-count // n) + 1


@given(n_, seed_, st.integers(1, 4), st.integers(1, 30))
def test_resumed_exactly_at_an_epoch_border(n: int, seed: int, epochs: int, count: int) -> None:
    """A step that begins where an epoch ends takes a whole step of the next one, in its order (verl PR #5725)."""
    count = next(c for c in range(min(count, n), 0, -1) if n % c == 0)
    border = epochs * n // count
    next_epoch = [i for step in range(border, border + n // count) for i in PromptSampler(n, seed).take(step, count)]
    assert sorted(next_epoch) == list(range(n))
    assert len(PromptSampler(n, seed).take(border, count)) == count


@given(n_, seed_, st.integers(0, 9), st.integers(1, 20), st.integers(0, 60), st.integers(0, 60))
def test_refills_are_others_and_a_prefix(n: int, seed: int, step: int, count: int, fewer: int, more: int) -> None:
    """They need no cursor either, and take nothing out of the stream of the steps' own prompts (NeMo-RL#3594)."""
    sampler = PromptSampler(n, seed)
    own = sampler.take(step, count)
    fewer, more = sorted((fewer, more))
    further = sampler.further(step, count, more)
    others = set(range(n)) - set(own) or set(range(n))
    assert len(further) == more
    assert set(further) <= others
    assert len(set(further)) == min(more, len(others))
    assert PromptSampler(n, seed).further(step, count, fewer) == further[:fewer]
    assert sampler.take(step, count) == own


def test_refills_of_steps_and_seeds_differ() -> None:
    sampler = PromptSampler(100, 1)
    assert sampler.further(0, 10, 50) != sampler.further(1, 10, 50)
    assert sampler.further(0, 10, 50) != PromptSampler(100, 2).further(0, 10, 50)


def test_epochs_and_seeds_differ() -> None:
    sampler = PromptSampler(100, 1)
    assert sampler.take(0, 100) != sampler.take(1, 100)
    assert sampler.take(0, 100) != PromptSampler(100, 2).take(0, 100)
    with pytest.raises(ValueError, match="0 prompts"):
        PromptSampler(0, 1)
