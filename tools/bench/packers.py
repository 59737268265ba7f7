"""What the planner is compared with: plain first-fit decreasing, Karmarkar-Karp, and bounds that no plan can pass."""

from __future__ import annotations

import heapq

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]


def first_fit(lengths: Ints, capacity: int) -> Ints:
    """[n] bin of each row: longest first into the first bin that has room. lengths: [n] falling."""
    bins, room, opened = np.empty(len(lengths), np.int64), np.full(len(lengths), capacity), 0
    for row, length in enumerate(lengths.tolist()):
        fits = room[:opened + 1] >= length
        bins[row] = number = int(fits.argmax())
        room[number] -= length
        opened = max(opened, number + 1)
    return bins


def first_fit_dealt(lengths: Ints, capacity: int, ranks: int, multiple: int) -> tuple[Ints, int, int]:
    """([n] rank of each row, bins that are filled, bins that are run): first-fit bins, dealt round robin."""
    bins = first_fit(lengths, capacity)
    filled = int(bins.max()) + 1
    return bins % ranks, filled, -(-filled // (ranks * multiple)) * ranks * multiple


def karmarkar_karp(costs: NDArray[np.float64], ranks: int) -> Ints:
    """[n] rank of each row by the largest differencing method (Karmarkar and Karp 1982, for several sets).

    The two partial solutions with the largest differences are joined, heaviest part with lightest, until one is left.
    """
    heap = [(-spent, row, [(spent, [row])] + [(0.0, [])] * (ranks - 1)) for row, spent in enumerate(costs.tolist())]
    heapq.heapify(heap)
    while len(heap) > 1:
        (_, number, one), (_, _, other) = heapq.heappop(heap), heapq.heappop(heap)
        joined = sorted(((load + more, rows + others) for (load, rows), (more, others)
                         in zip(one, reversed(other), strict=True)), key=lambda part: -part[0])
        heapq.heappush(heap, (joined[-1][0] - joined[0][0], number, joined))
    rank_of = np.empty(len(costs), np.int64)
    for rank, (_, rows) in enumerate(heap[0][2]):
        rank_of[rows] = rank
    return rank_of


def karmarkar_karp_dealt(lengths: Ints, costs: NDArray[np.float64], capacity: int, ranks: int, multiple: int
                         ) -> tuple[Ints, int, int]:
    """The same as `first_fit_dealt`: rows to ranks by differencing, each rank's own by first fit (verl's order)."""
    rank_of = karmarkar_karp(costs, ranks)
    each = [int(first_fit(lengths[rank_of == rank], capacity).max(initial=-1)) + 1 for rank in range(ranks)]
    return rank_of, sum(each), -(-max(each) // multiple) * multiple * ranks


def fewest_bins(lengths: Ints, capacity: int) -> int:
    """No packing takes fewer: the larger of the bounds of Martello and Toth (L2, 1990) and of Fekete and Schepers
    (dual feasible functions u^(k), 2001: with k = 1 of the rows above half the capacity, then above a third, ...)."""
    return max(_martello_toth(np.sort(lengths), capacity), *(_dual(lengths, capacity, k) for k in range(1, 65)))


def _martello_toth(rising: Ints, capacity: int) -> int:
    """Leave out rows below k; those above capacity - k stand alone; those above half have a bin each, whose room the
    rest may fill. The best over k."""
    total = np.concatenate([[0], np.cumsum(rising)])
    half = int(np.searchsorted(rising, capacity / 2, "right"))
    above_half = len(rising) - half
    first = np.searchsorted(rising, np.unique(np.append(rising[:half], 0)), "left")
    limits = np.unique(np.append(rising[:half], 0))
    alone = len(rising) - np.searchsorted(rising, capacity - limits, "right")
    alone = np.minimum(alone, above_half)
    shared = above_half - alone
    room = shared * capacity - (total[half + shared] - total[half])
    rest = total[half] - total[np.minimum(first, half)] - room
    return int((above_half + np.maximum(0, -(-rest // capacity))).max())


def _dual(lengths: Ints, capacity: int, k: int) -> int:
    """Sum of u^(k)(length / capacity), rounded up."""
    whole, rest = np.divmod((k + 1) * lengths, capacity)
    return int(np.ceil(np.where(rest == 0, lengths / capacity, whole / k).sum() - 1e-6))
