"""Packed micro-batches: rows laid one after another, at most `capacity` tokens in a bin. Arrays, longest row first.

Two ways to fill bins. `spread` gives so many bins about equal costs (a pipeline runs at the pace of its largest
micro-batch); where the room is too tight for that, `pack` finds how few bins will do, and `split` raises their number.

Equal lengths are packed together, so the time goes with the distinct lengths; spreading goes in rounds that are few.

Invariants:
- each_row_once: every row has exactly one bin.
- no_bin_over_capacity: the lengths in a bin add up to at most the capacity.
- bins_never_waste_a_merge: as packed, no two bins fit into one.
- spread_is_even: as spread without a limit, the costliest bin exceeds the cheapest by at most the costliest row.
- count_is_exact: `spread` and `split` give bins 0 to count - 1, and leave one empty only if no bin can be parted.
"""

from __future__ import annotations

import heapq
from bisect import bisect_left, insort
from collections import defaultdict

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]
Costs = NDArray[np.float64]
ROUNDS = 128
"""Rounds after which `spread` gives up: by then it looks for the last gaps, which `pack` does better."""


class _Rooms:
    """Runs of bins with equally many tokens left, by that number."""

    def __init__(self) -> None:
        self._sizes: list[int] = []
        self._runs: defaultdict[int, list[tuple[int, int]]] = defaultdict(list)

    def put(self, room: int, first: int, number: int) -> None:
        if not self._runs[room]:
            insort(self._sizes, room)
        self._runs[room].append((first, number))

    def take(self, size: int) -> tuple[int, int, int] | None:
        """(room, first bin, number of bins) of a run with the least room that holds so many tokens."""
        at = bisect_left(self._sizes, size)
        if at == len(self._sizes):
            return None
        room = self._sizes[at]
        first, number = self._runs[room].pop()
        if not self._runs[room]:
            del self._sizes[at]
        return room, first, number


def pack(lengths: Ints, capacity: int) -> Ints:
    """[n] bin of each row by best-fit decreasing. lengths: [n] falling, each at most the capacity."""
    starts = np.flatnonzero(np.diff(lengths, prepend=-1))
    rooms, opened = _Rooms(), 0
    placed: list[tuple[int, int, int]] = []  # (first bin, bins, rows in each), in the rows' order
    for size, left in zip(lengths[starts].tolist(), np.diff(starts, append=len(lengths)).tolist(), strict=True):
        while left:
            run = rooms.take(size)
            if run is None:
                run = capacity, opened, -(-left // (capacity // size))
                opened += run[2]
            room, first, number = run
            each = min(left, room // size)
            used = min(number, left // each)
            placed.append((first, used, each))
            left -= used * each
            rooms.put(room - each * size, first, used)
            if number > used:
                rooms.put(room, first + used, number - used)
    return _bins_of(placed)


def _bins_of(placed: list[tuple[int, int, int]]) -> Ints:
    """The bin of each row: runs of bins that take equally many of the next rows."""
    first, number, each = np.array(placed, np.int64).reshape(-1, 3).T
    rows = number * each
    inside = np.arange(rows.sum()) - np.repeat(np.cumsum(rows) - rows, rows)
    return np.asarray(np.repeat(first, rows) + inside // np.repeat(each, rows))


def spread(lengths: Ints, costs: Costs, count: int, capacity: int) -> Ints | None:
    """[n] bin of each row, the bins of about equal cost; None if they do not come out within the capacity.

    Each row goes to the cheapest bin that has room (LPT), as many rows at once as do so independently; and while bins
    lack far more than a row, those that lack most take several each.
    """
    bins, load, room = np.empty(len(lengths), np.int64), np.zeros(count), np.full(count, capacity)
    done, rest = 0, float(costs.sum())
    for _ in range(ROUNDS):
        if done == len(lengths):
            return bins
        order = np.argsort(load, kind="stable")
        order = order[room[order] >= lengths[done]]
        if not len(order):
            return None
        takers, reps = _takers(order, load, room, lengths[done:], costs[done:], rest)
        end = done + reps * len(takers)
        bins[done:end].reshape(reps, -1)[:] = takers  # all passes together favour the first by at most a row
        load[takers] += costs[done:end].reshape(reps, -1).sum(axis=0)
        room[takers] -= lengths[done:end].reshape(reps, -1).sum(axis=0)
        done, rest = end, rest - costs[done:end].sum()
    return bins if done == len(lengths) else None


def _takers(order: Ints, load: Costs, room: Ints, lengths: Ints, costs: Costs, rest: float) -> tuple[Ints, int]:
    """Bins that take the next rows, cheapest first, and how many rows each. order: bins with room, cheapest first."""
    loads = load[order]
    level = ((rest + np.cumsum(loads)) / np.arange(1, len(loads) + 1)).min()  # if the rest were poured in
    gap = level - loads[0]
    needy = order[loads <= level - gap / 2]
    if (reps := int(min(gap // (4 * costs[0]), len(costs) // len(needy)))) > 1:
        reps = max(1, min(reps, int(np.sort(room[needy])[len(needy) // 2] // lengths[0])))
        return needy[room[needy] >= reps * lengths[0]], reps
    most = min(len(order), len(costs))
    later = loads[:most] >= loads[0] + costs[:most]  # such a bin is not the cheapest before another one took two
    later[0] = False
    return order[: int(later.argmax()) if later.any() else most], 1


def split(bins: Ints, costs: Costs, count: int) -> Ints:
    """[n] bins 0 to count - 1: the costliest that has two rows is halved until there are so many."""
    bins, made = bins.copy(), int(bins.max(initial=-1)) + 1
    if made >= count:
        return bins
    order, sizes = np.argsort(bins, kind="stable"), np.bincount(bins, minlength=made)
    ends = np.cumsum(sizes)
    spent = np.bincount(bins, costs, made)
    heap = [(-spent[number], number, order[ends[number] - sizes[number]:ends[number]])
            for number in np.flatnonzero(sizes > 1).tolist()]
    heapq.heapify(heap)
    while made < count and heap:
        _, number, rows = heapq.heappop(heap)
        leaves = np.array(_halves(costs[rows].tolist()))
        bins[rows[leaves]] = made
        for half, part in ((number, rows[~leaves]), (made, rows[leaves])):
            if len(part) > 1:
                heapq.heappush(heap, (-costs[part].sum(), half, part))
        made += 1
    return bins


def _halves(costs: list[float]) -> list[bool]:
    """Which rows leave: each row to the cheaper side, costliest first."""
    sides, leaves = [0.0, 0.0], []
    for spent in costs:
        leaves.append(sides[1] < sides[0])
        sides[leaves[-1]] += spent
    return leaves
