"""Padded micro-batches: rows of like length share a bucket, and every micro-batch of a bucket has one padded width.

The widths are those with the least padding among all choices of at most K (dynamic programming over the lengths that
occur, rounded up to the quantum). Within a bucket, the rows are spread evenly over its micro-batches, so a bucket has
at most two shapes (rows x width).

Invariants:
- widths_are_optimal: no other choice of at most K widths pads less.
- each_row_once: the micro-batches hold every row exactly once, in a bucket at least as wide as the row.
- no_bin_over_capacity: rows x width is at most the capacity.
- few_shapes: at most two shapes a bucket (and one for an empty micro-batch).
- count_is_a_multiple: the number of micro-batches is a multiple of what was asked for, and positive.
- no_empty_bin_while_rows_suffice: a micro-batch is empty only if there are fewer rows than micro-batches.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping, Sequence
from itertools import pairwise

import numpy as np

from siri_megatron.batching.lengths import QUANTUM, cost, round_up
from siri_megatron.batching.packing import Bin

Padded = tuple[Bin, int]
"""Rows of a micro-batch and their common padded width, tokens."""


def bucket_widths(lengths: Sequence[int], count: int, quantum: int = QUANTUM) -> tuple[int, ...]:
    """At most `count` widths, ascending, with the least padding in all; the last holds the longest row.

    With the widths that occur w_1 < ... < w_d, n_j rows up to w_j and s_j their sum, a bucket (i, j] costs
    w_j (n_j - n_i) - (s_j - s_i) tokens of padding: since the total of s is fixed, least w_j (n_j - n_i) is enough.
    """
    widths, occurring = np.unique([round_up(length, quantum) for length in lengths], return_counts=True)
    rows = np.concatenate([[0], np.cumsum(occurring)])
    area = np.concatenate([[0], widths * rows[1:]]).astype(np.int64)  # area[j]: best area of the first j widths
    choices: list[np.ndarray] = []
    for _ in range(min(count, len(widths)) - 1):
        area, cut = _one_more_bucket(area, widths, rows)
        choices.append(cut)
    return _trace(choices, widths)


def _one_more_bucket(area: np.ndarray, widths: np.ndarray, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Best areas with one bucket more, and where the last bucket then begins. All arrays [d + 1]."""
    better, cut = area.copy(), np.zeros(len(area), np.int64)
    for j in range(1, len(area)):
        by_cut = area[:j] + widths[j - 1] * (rows[j] - rows[:j])
        cut[j] = by_cut.argmin()
        better[j] = by_cut[cut[j]]
    return better, cut


def _trace(choices: list[np.ndarray], widths: np.ndarray) -> tuple[int, ...]:
    """Walk the cuts back from the widest bucket."""
    end, chosen = len(widths), []
    for cut in reversed([np.zeros(len(widths) + 1, np.int64), *choices]):
        if end:
            chosen.append(int(widths[end - 1]))
            end = int(cut[end])
    return tuple(reversed(chosen))


def pad(lengths: Mapping[int, int], widths: Sequence[int], capacity: int, multiple: int, quantum: int = QUANTUM
        ) -> list[Padded]:
    """Micro-batches of the rows, their number a multiple. lengths: row -> tokens; widths: ascending."""
    buckets: dict[int, list[int]] = {}
    for row in sorted(lengths, key=lambda row: (-lengths[row], row)):
        buckets.setdefault(widths[bisect_left(widths, lengths[row])], []).append(row)
    counts = {width: -(-len(rows) // (capacity // width)) for width, rows in buckets.items()}
    total = max(1, -(-sum(counts.values()) // multiple)) * multiple
    while sum(counts.values()) < min(total, len(lengths)):
        counts[_costliest(buckets, counts)] += 1
    filled = [(part, width) for width, rows in buckets.items() for part in _spread(rows, counts[width])]
    return filled + [((), quantum)] * (total - len(filled))


def _costliest(buckets: Mapping[int, Sequence[int]], counts: Mapping[int, int]) -> int:
    """Width of the bucket with the costliest micro-batch that still has two rows to part."""
    partable = [width for width in buckets if counts[width] < len(buckets[width])]
    return max(partable, key=lambda width: (-(-len(buckets[width]) // counts[width]) * cost(width), width))


def _spread(rows: Sequence[int], count: int) -> list[Bin]:
    """Cut into parts whose sizes differ by at most one."""
    edges = [len(rows) * part // count for part in range(count + 1)]
    return [tuple(rows[start:end]) for start, end in pairwise(edges)]
