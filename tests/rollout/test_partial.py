"""Partial responses under the invariants' names: a continued request is charged for what it already has."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from siri_megatron.rollout.engine_api import ABORTED, Sample
from siri_megatron.rollout.partial import closed, joined, rest_of
from siri_megatron.rollout.request import Request

ASKED = Request(3, (7, 8, 9), 4, 40, 0.7, 11, (0,), top_p=0.9, job="step 5", lag=2)


def sample(size: int, reason: str = ABORTED, versions: tuple[str, ...] = ("1",), first: int = 100) -> Sample:
    """A response of so many distinct tokens; the versions share it out evenly."""
    edges = [size * at // len(versions) for at in range(len(versions) + 1)]
    spans = [{"version": version, "start": start, "end": end}
             for version, start, end in zip(versions, edges, edges[1:], strict=False) if start < end]
    return Sample(list(range(first, first + size)), [-float(at) for at in range(first, first + size)], reason, spans)


sizes = st.integers(0, 30)
versions = st.sampled_from([("1",), ("1", "2"), ("2", "3"), ("3", "4", "5")])


@given(sizes, sizes)
def test_charged(had: int, cap: int) -> None:
    """slime#2260, verl PR#7207: a fresh cap for a resumed partial passed the context; HTTP 400 was tried again."""
    rest = rest_of(ASKED, sample(had), cap)
    if rest is not None:
        assert had + rest.max_tokens == cap
        assert len(rest.prompt_ids) + rest.max_tokens == len(ASKED.prompt_ids) + cap
        assert rest.prompt_ids == (7, 8, 9, *range(100, 100 + had))
        assert (rest.n, rest.seed) == (1, None)
        assert (rest.temperature, rest.top_p, rest.stop_ids, rest.job, rest.lag) == (0.7, 0.9, (0,), "step 5", 2)
    assert (rest is None) == (had >= cap)


def test_ended_ones_ask_for_nothing() -> None:
    for reason in ("stop", "length"):
        assert rest_of(ASKED, sample(3, reason), 30) is None


@given(sizes, st.integers(1, 30), st.sampled_from(["stop", "length", ABORTED]), versions)
def test_never_negative(had: int, cap: int, reason: str, of: tuple[str, ...]) -> None:
    """Others assert when a cap falls below what a waiting partial has; here it is truncated, or still has room."""
    whole = sample(had, reason, of)
    cut = closed(whole, cap)
    assert cut.token_ids == whole.token_ids[:cap]
    assert cut.logprobs == whole.logprobs[:cap]
    assert covered(cut)
    beyond = had > cap or (had == cap and reason == ABORTED)
    assert cut.finish_reason == ("length" if beyond else reason)
    assert (rest_of(ASKED, cut, cap) is None) == (cut.finish_reason != ABORTED)


@given(sizes, versions, st.integers(1, 30), versions)
def test_joined_is_one(first: int, of: tuple[str, ...], second: int, then: tuple[str, ...]) -> None:
    one, two = sample(first, ABORTED, of), sample(second, "length", then, first=500)
    whole = joined(one, two)
    assert whole.token_ids == one.token_ids + two.token_ids
    assert whole.logprobs == one.logprobs + two.logprobs
    assert whole.finish_reason == "length"
    assert covered(whole)
    assert versions_of(whole) == versions_of(one) + versions_of(two)
    names = [span["version"] for span in whole.spans]
    assert all(left != right for left, right in pairwise(names))


def covered(found: Sample) -> bool:
    edges = [0, *(span["end"] for span in found.spans)]
    return edges == [*(span["start"] for span in found.spans), len(found.token_ids)]


def versions_of(found: Sample) -> list[Any]:
    return [span["version"] for span in found.spans for _ in range(span["end"] - span["start"])]
