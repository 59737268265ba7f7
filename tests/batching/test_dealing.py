from __future__ import annotations

from itertools import combinations, product

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from siri_megatron.batching.dealing import deal, exchange, place, running_order
from siri_megatron.batching.lengths import cost
from siri_megatron.batching.packing import pack

CAPACITY = 100


@st.composite
def decks(draw, most=8):
    ranks, places = draw(st.integers(1, 6)), draw(st.integers(1, most))
    size = ranks * places
    return np.array(draw(st.lists(st.integers(0, 1000), min_size=size, max_size=size)), float), ranks


rows = st.lists(st.integers(1, CAPACITY), min_size=1, max_size=60).map(lambda lengths: np.sort(lengths)[::-1])
ranks_and_multiples = st.tuples(st.integers(1, 4), st.integers(1, 4))


@given(decks())
def test_each_once(deck):
    costs, ranks = deck
    assert sorted(np.concatenate(deal(costs, ranks)).tolist()) == list(range(len(costs)))


@given(decks())
def test_equal_counts(deck):
    costs, ranks = deck
    assert [len(hand) for hand in deal(costs, ranks)] == [len(costs) // ranks] * ranks


@given(decks())
def test_balanced(deck):
    costs, ranks = deck
    loads = [costs[hand].sum() for hand in deal(costs, ranks)]
    assert max(loads) - min(loads) <= costs.max()


@given(decks())
def test_exchange_never_worsens(deck):
    costs, ranks = deck
    hands = [np.arange(rank, len(costs), ranks) for rank in range(ranks)]
    before = max(costs[hand].sum() for hand in hands)
    exchange(hands, costs)
    assert max(costs[hand].sum() for hand in hands) <= before + 1e-9
    assert sorted(np.concatenate(hands).tolist()) == list(range(len(costs)))


@given(st.lists(st.integers(0, 1000), min_size=2, max_size=12).filter(lambda costs: len(costs) % 2 == 0))
def test_no_single_exchange_would_help_two_ranks(costs):
    """Brute force over every pair of micro-batches: after dealing, none lowers the heavier rank by more than 0.1%."""
    costs = np.array(costs, float)
    hands = deal(costs, 2)
    heavy, light = sorted((costs[hand] for hand in hands), key=lambda hand: -hand.sum())
    gap = heavy.sum() - light.sum()
    least = min((abs(gap - 2 * (one - other)) for one, other in product(heavy, light)), default=gap)
    assert gap <= least + 1e-6 or gap <= 1e-3 * heavy.sum() + 1e-6


def test_exchange_finds_what_costliest_first_misses():
    """9 + 5 + 1 against 8 + 7 + 4; exchanging 5 with 7 makes it 17 each."""
    costs = np.array([9.0, 8, 7, 5, 4, 1])
    lpt = [[0, 3, 5], [1, 2, 4]]  # 15 against 19
    hands = [np.array(hand) for hand in lpt]
    exchange(hands, costs)
    best = min(max(sum(costs[list(half)]), costs.sum() - sum(costs[list(half)])) for half in combinations(range(6), 3))
    assert max(costs[hand].sum() for hand in hands) == best == 17


def test_round_robin_would_be_worse():
    """Negative control: in order of size, round robin gives 9 + 6 against 8 + 1."""
    assert [hand.tolist() for hand in deal(np.array([9.0, 8, 6, 1]), 2)] == [[0, 3], [1, 2]]


@given(rows, ranks_and_multiples)
def test_fewest_places(lengths, layout):
    ranks, multiple = layout
    bins, count = place(lengths, cost(lengths), CAPACITY, ranks, multiple)
    packed = int(pack(lengths, CAPACITY).max()) + 1
    least = -(-int(lengths.sum()) // CAPACITY)
    assert count % multiple == 0
    assert least <= ranks * count < packed + ranks * multiple
    assert bins.max() < ranks * count
    assert np.bincount(bins, lengths).max() <= CAPACITY


@given(rows, ranks_and_multiples)
def test_placing_balances_ranks_within_a_row_where_there_is_room(lengths, layout):
    """Rows are dealt, not bins: the heaviest rank exceeds the lightest by at most the costliest row."""
    ranks, multiple = layout
    costs = cost(lengths)
    bins, count = place(lengths, costs, CAPACITY, ranks, multiple)
    assume(lengths.sum() <= 0.4 * CAPACITY * ranks * count)
    loads = np.bincount(bins // count, costs, ranks)
    assert loads.max() - loads.min() <= costs.max() + 1e-6


def test_one_giant_is_made_up_for_by_rows():
    """A row of 90 and 60 of 10, 2 ranks: ready bins of 100 give 390 + 300, rows 350 + 340."""
    lengths = np.array([90] + [10] * 60)
    bins, count = place(lengths, lengths.astype(float), CAPACITY, 2, 4)
    assert sorted(np.bincount(bins // count, lengths)) == [340, 350]


@given(st.lists(st.integers(0, 1000), min_size=1, max_size=40).map(np.array))
def test_neighbours_are_alike(costs):
    """A pipeline's order rises to the costliest and falls; its steps are those to the next but one in sorted order."""
    order = running_order(costs, pipeline=True)
    assert sorted(order.tolist()) == list(range(len(costs)))
    found, steps = costs[order], np.sort(costs)
    top = int(found.argmax())
    assert (np.diff(found[: top + 1]) >= 0).all()
    assert (np.diff(found[top:]) <= 0).all()
    assert np.abs(np.diff(found)).max(initial=0) <= max((steps[2:] - steps[:-2]).max(initial=0),
                                                        np.diff(steps).max(initial=0))
    assert (np.diff(costs[running_order(costs, pipeline=False)]) <= 0).all()


def makespan(costs, stages):
    """1F1B by hand: a stage runs its operations in its order, each when its input is there; backward takes twice."""
    done, clock = {}, [0.0] * stages
    queues = [one_forward_one_backward(len(costs), stages - 1 - stage) for stage in range(stages)]
    while any(queues):
        for stage, queue in enumerate(queues):
            while queue and (start := ready(done, queue[0], stage, stages)) is not None:
                kind, item = queue.pop(0)
                clock[stage] = max(clock[stage], start) + costs[item] * (1 if kind == "forward" else 2)
                done[kind, item, stage] = clock[stage]
    return max(clock)


def one_forward_one_backward(count, ahead):
    ahead = min(ahead, count)
    queue = [("forward", item) for item in range(ahead)]
    for item in range(ahead, count):
        queue += [("forward", item), ("backward", item - ahead)]
    return queue + [("backward", item) for item in range(count - ahead, count)]


def ready(done, operation, stage, stages):
    kind, item = operation
    if kind == "forward":
        return 0.0 if stage == 0 else done.get((kind, item, stage - 1))
    return done.get(("forward", item, stage)) if stage == stages - 1 else done.get((kind, item, stage + 1))


@pytest.mark.parametrize("stages", [2, 4])
def test_the_order_suits_the_pipeline(stages):
    """Simulated over 20 steps: rising and falling leaves a smaller bubble than falling, and far less than at random."""
    rng, bubbles = np.random.default_rng(0), np.zeros(3)
    for _ in range(20):
        costs = np.exp(rng.normal(0, 0.3, 2 * stages))
        orders = (running_order(costs, pipeline=True), running_order(costs, pipeline=False), np.arange(len(costs)))
        bubbles += [makespan(costs[order], stages) / (3 * costs.sum()) - 1 for order in orders]
    assert makespan(np.ones(2 * stages), stages) / (6 * stages) - 1 == pytest.approx((stages - 1) / (2 * stages))
    assert bubbles[0] < 0.9 * bubbles[1]
    assert bubbles[1] < bubbles[2]
