"""Packed micro-batches: rows laid one after another, at most `capacity` tokens in a bin.

Best-fit decreasing over the whole optimizer step says how many bins it takes; the number is raised to what the ranks
need; then the rows are spread evenly over so many bins (slime's order: pack the step, then deal). Even bins matter: a
pipeline runs at the pace of its largest micro-batch, which is 1.2 to 1.6 times the mean when bins are only split, and
1.01 when they are spread. Where spreading would overfill a bin, the packed bins stay and the costliest are split.

Invariants:
- each_row_once: the bins hold every row exactly once.
- no_bin_over_capacity: the lengths in a bin add up to at most the capacity.
- bins_never_waste_a_merge: as packed, no two bins fit into one.
- count_is_a_multiple: the number of bins is a multiple of what was asked for, and positive.
- no_empty_bin_while_rows_suffice: a bin is empty only if there are fewer rows than bins.
"""

from __future__ import annotations

import heapq
from bisect import bisect_left, insort
from collections.abc import Mapping

from siri_megatron.batching.lengths import cost

Bin = tuple[int, ...]
"""Row numbers that share a micro-batch, longest first."""


def pack(lengths: Mapping[int, int], capacity: int) -> list[Bin]:
    """Best-fit decreasing. lengths: row -> tokens, each at most the capacity."""
    bins: list[list[int]] = []
    room: list[tuple[int, int]] = []  # (tokens left, bin), ascending
    for row in sorted(lengths, key=lambda row: (-lengths[row], row)):
        place = bisect_left(room, (lengths[row], -1))
        left, chosen = room.pop(place) if place < len(room) else (capacity, len(bins))
        if chosen == len(bins):
            bins.append([])
        bins[chosen].append(row)
        insort(room, (left - lengths[row], chosen))
    return [tuple(rows) for rows in bins]


def fill_places(lengths: Mapping[int, int], capacity: int, multiple: int) -> list[Bin]:
    """The bins of an optimizer step: as few as the capacity allows, rounded up to a multiple, about equal in cost."""
    bins = pack(lengths, capacity)
    count = max(1, -(-len(bins) // multiple)) * multiple
    return spread(lengths, capacity, count) or split(bins, lengths, count)


def spread(lengths: Mapping[int, int], capacity: int, count: int) -> list[Bin] | None:
    """So many bins of about equal cost: each row to the cheapest bin, longest first; None if a bin overflows."""
    bins: list[list[int]] = [[] for _ in range(count)]
    room = [capacity] * count
    heap = [(0.0, number) for number in range(count)]
    for row in sorted(lengths, key=lambda row: (-lengths[row], row)):
        spent, cheapest = heap[0]
        if room[cheapest] < lengths[row]:
            return None
        bins[cheapest].append(row)
        room[cheapest] -= lengths[row]
        heapq.heapreplace(heap, (spent + cost(lengths[row]), cheapest))
    return [tuple(rows) for rows in bins]


def split(bins: list[Bin], lengths: Mapping[int, int], count: int) -> list[Bin]:
    """Halve the costliest bin until there are so many; empty bins only where no bin can be split."""
    missing = count - len(bins)
    heap = [_entry(rows, lengths) for rows in bins]
    heapq.heapify(heap)
    done: list[Bin] = []
    while missing and heap:
        _, rows = heapq.heappop(heap)
        if len(rows) < 2:
            done.append(rows)
            continue
        for half in halve(rows, lengths):
            heapq.heappush(heap, _entry(half, lengths))
        missing -= 1
    return [*done, *(rows for _, rows in heap), *([()] * missing)]


def halve(rows: Bin, lengths: Mapping[int, int]) -> tuple[Bin, Bin]:
    """Two bins of about equal cost out of one of two rows or more: each row to the lighter side, longest first."""
    sides: tuple[list[int], list[int]] = ([], [])
    costs = [0.0, 0.0]
    for row in rows:
        lighter = int(costs[1] < costs[0])
        sides[lighter].append(row)
        costs[lighter] += cost(lengths[row])
    return tuple(sides[0]), tuple(sides[1])


def _entry(rows: Bin, lengths: Mapping[int, int]) -> tuple[float, Bin]:
    return -sum(cost(lengths[row]) for row in rows), rows
