from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from siri_megatron.batching.dealing import deal


@st.composite
def decks(draw):
    ranks, places = draw(st.integers(1, 6)), draw(st.integers(0, 8))
    size = ranks * places
    return draw(st.lists(st.integers(0, 1000), min_size=size, max_size=size)), ranks


@given(decks())
def test_each_once(deck):
    costs, ranks = deck
    assert sorted(item for hand in deal(costs, ranks) for item in hand) == list(range(len(costs)))


@given(decks())
def test_equal_counts(deck):
    costs, ranks = deck
    assert [len(hand) for hand in deal(costs, ranks)] == [len(costs) // ranks] * ranks


@given(decks())
def test_costliest_first(deck):
    costs, ranks = deck
    for hand in deal(costs, ranks):
        assert [costs[item] for item in hand] == sorted((costs[item] for item in hand), reverse=True)


@given(decks())
def test_balanced(deck):
    costs, ranks = deck
    loads = [sum(costs[item] for item in hand) for hand in deal(costs, ranks)]
    assert max(loads) - min(loads) <= max(costs, default=0)


def test_round_robin_would_be_worse():
    """Negative control: in order of size, round robin gives 9 + 6 against 8 + 1."""
    assert deal([9, 8, 6, 1], 2) == [[0, 3], [1, 2]]
