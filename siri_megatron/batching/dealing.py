"""Dealing to data-parallel ranks: the same number of micro-batches for everyone, about the same cost.

Data-parallel ranks wait for each other once an optimizer step, so the sums over ranks count, not single micro-batches.

`place` decides for packed rows. It deals the *rows* to the ranks by cost and spreads each rank's own over its bins:
so a rank with one very long row gets fewer others, which no dealing of ready bins could give it. Where the room is too
tight for that, the whole optimizer step is packed and its bins are dealt (`deal`: costliest first to the cheapest rank
that has a place, then exchanges); if that is uneven, each rank's rows are packed in their turn.

Within a rank, without a pipeline, costs fall: what does not fit into memory fails at once. In a pipeline they rise and
then fall, by neighbours: stages wait for unequal neighbours, and fill and drain at the pace of the first and last
micro-batches. Simulated (1F1B, 4 stages, 8 micro-batches, spread of costs 30%), the bubble is 37% of the work against
48% when costs fall and 63% in random order; for interleaved stages, too, neighbours are alike.

Invariants:
- each_once: every micro-batch goes to exactly one rank.
- equal_counts: every rank gets the same number.
- fewest_places: the number of bins is the packed one, raised to a multiple of ranks x multiple, or less.
- balanced: the heaviest rank exceeds the lightest by at most the costliest micro-batch.
- exchange_never_worsens: after exchanges the heaviest rank is at most as heavy.
- neighbours_are_alike: in a pipeline's order no micro-batch stands between two cheaper or two costlier ones, but the
  costliest.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Sequence

import numpy as np

from siri_megatron.batching.packing import Costs, Ints, pack, split, spread

CLOSE = 1e-3
"""Ranks are not exchanged any more below this difference, as a share of their cost."""
SLACK = 0.02
"""Share of the room that the rows must leave for spreading to be tried: in less it rarely comes out."""
EVEN = 5e-3
"""Excess of the heaviest rank's cost over the mean up to which ready bins are dealt."""
Fill = Callable[[Ints, Costs, int, int], Ints | None]
"""Lengths, costs, count, capacity -> bin of each row."""


def place(lengths: Ints, costs: Costs, capacity: int, ranks: int, multiple: int) -> tuple[Ints, int]:
    """([n] bin of each row, bins of a rank): rank r has bins r x count to (r + 1) x count - 1.

    lengths, costs: [n] falling, each length at most the capacity.
    """
    tokens = int(lengths.sum())
    least = count = _raised(-(-tokens // capacity), ranks * multiple) // ranks
    if (bins := _spread(lengths, costs, capacity, ranks, count)) is not None:
        return bins, count
    packed = pack(lengths, capacity)
    count = _raised(int(packed.max()) + 1, ranks * multiple) // ranks
    if count > least and (bins := _spread(lengths, costs, capacity, ranks, count)) is not None:
        return bins, count
    bins = split(packed, costs, ranks * count)
    loads = np.asarray(np.bincount(bins, costs, ranks * count), np.float64)
    hands = deal(loads, ranks)
    if max(loads[hand].sum() for hand in hands) > (1 + EVEN) * costs.sum() / ranks:
        by_rank = _rank_by_rank(lengths, costs, capacity, ranks, count, _pack)
        if by_rank is not None:
            return by_rank, count
    return _renumbered(hands)[bins], count


def _raised(count: int, multiple: int) -> int:
    return max(1, -(-count // multiple)) * multiple


def _renumbered(hands: Sequence[Ints]) -> Ints:
    """New number of each bin: rank by rank."""
    order = np.concatenate(hands)
    numbers = np.empty(len(order), np.int64)
    numbers[order] = np.arange(len(order))
    return numbers


def _spread(lengths: Ints, costs: Costs, capacity: int, ranks: int, count: int) -> Ints | None:
    """Rows to ranks, then each rank's evenly to `count` bins; None if they do not come out, or hardly could."""
    if lengths.sum() > (1 - SLACK) * capacity * ranks * count:
        return None
    return _rank_by_rank(lengths, costs, capacity, ranks, count, spread)


def _rank_by_rank(lengths: Ints, costs: Costs, capacity: int, ranks: int, count: int, fill: Fill) -> Ints | None:
    """Rows to ranks by cost, then each rank's to `count` bins; None if they do not come out."""
    rank_of = spread(lengths, costs, ranks, count * capacity)
    if rank_of is None:
        return None
    bins = np.empty(len(lengths), np.int64)
    for rank in range(ranks):
        own = np.flatnonzero(rank_of == rank)
        filled = fill(lengths[own], costs[own], count, capacity)
        if filled is None:
            return None
        bins[own] = rank * count + filled
    return bins


def _pack(lengths: Ints, costs: Costs, count: int, capacity: int) -> Ints | None:
    """As few bins as hold the rows, then `count`; None if more are needed."""
    bins = pack(lengths, capacity)
    return split(bins, costs, count) if bins.max(initial=-1) < count else None


def deal(costs: Costs, ranks: int) -> list[Ints]:
    """Numbers of the micro-batches of each rank, costliest first. costs: [m], m a multiple of the ranks."""
    falling = running_order(costs, pipeline=False)
    places = len(costs) // ranks
    hands: list[list[int]] = [[] for _ in range(ranks)]
    heap = [(0.0, rank) for rank in range(ranks)]
    for item, spent in zip(falling.tolist(), costs[falling].tolist(), strict=True):
        load, rank = heapq.heappop(heap)
        hands[rank].append(item)
        if len(hands[rank]) < places:
            heapq.heappush(heap, (load + spent, rank))
    exchanged = [np.array(hand, np.int64) for hand in hands]
    exchange(exchanged, costs)
    return [hand[running_order(costs[hand], pipeline=False)] for hand in exchanged]


def exchange(hands: list[Ints], costs: Costs) -> None:
    """Let the heaviest rank exchange a micro-batch with the lightest one while that helps, at most 8 times a rank."""
    loads = np.array([costs[hand].sum() for hand in hands])
    for _ in range(8 * len(hands)):
        heavy, light = int(loads.argmax()), int(loads.argmin())
        gap = float(loads[heavy] - loads[light])
        if gap <= CLOSE * loads[heavy]:
            return
        pair = _best_pair(costs[hands[heavy]], costs[hands[light]], gap)
        if pair is None:
            return
        mine, other = hands[heavy][pair[0]], hands[light][pair[1]]
        hands[heavy][pair[0]], hands[light][pair[1]] = other, mine
        loads[[heavy, light]] += np.array([-1, 1]) * (costs[mine] - costs[other])


def _best_pair(heavy: Costs, light: Costs, gap: float) -> tuple[int, int] | None:
    """(place in the heavier hand, in the lighter) whose exchange leaves the least gap; None if none makes it less."""
    order = np.argsort(light, kind="stable")
    at = np.searchsorted(light[order], heavy - gap / 2)
    near = order[np.stack([np.clip(at - 1, 0, None), np.clip(at, None, len(light) - 1)])]
    left = np.abs(gap - 2 * (heavy - light[near]))
    side, mine = divmod(int(left.argmin()), len(heavy))
    return (mine, int(near[side, mine])) if left[side, mine] < gap * (1 - 1e-9) else None


def running_order(costs: Costs, *, pipeline: bool) -> Ints:
    """The order in which a rank runs its micro-batches. costs: [m]."""
    falling = np.argsort(-costs, kind="stable")
    return np.concatenate([falling[1::2][::-1], falling[::2]]) if pipeline else falling
