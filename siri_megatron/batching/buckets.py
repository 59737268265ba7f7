"""Padded micro-batches: rows of like length share a bucket, and a micro-batch of a bucket has one padded width.

The widths are those with the least padding among all choices of at most K. The rows of a micro-batch are as many as the
capacity holds, of the heights 1, 2, 3, 4, 6, 8, 12, 16, 24, ...: so the shapes are known before the rows are, and few,
also while the capacity moves. The remainder of a bucket takes the lowest height that holds it, the places left over
stay empty; and the number of micro-batches is raised by parting some at half their height, which needs no new shape.
One height a bucket would mean fewer shapes, but remainders of nearly a whole micro-batch and nothing to even out the
ranks with; heights as needed are the least padding, but new shapes in every step.

Invariants:
- widths_are_optimal: no other choice of at most K widths pads less.
- each_row_once: the micro-batches hold every row exactly once, in the narrowest bucket that is wide enough.
- no_bin_over_capacity: height x width is at most the capacity.
- few_shapes: every shape is one of `planned_shapes`.
- count_is_a_multiple: the number of micro-batches is a multiple of what was asked for, and positive.
- no_empty_bin_while_rows_suffice: a micro-batch is empty only if there are fewer rows than micro-batches.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from siri_megatron.batching.lengths import ATTENTION_CROSSOVER, QUANTUM, cost, round_up

Padded = tuple[NDArray[np.int64], int, int]
"""Rows of a micro-batch, its height (rows, empty ones included) and width (padded length, tokens)."""
Part = tuple[int, int]
"""Width of a micro-batch, and its rows."""


def bucket_widths(lengths: ArrayLike, count: int, quantum: int = QUANTUM) -> tuple[int, ...]:
    """At most `count` widths, ascending, with the least padding in all; the last holds the longest row."""
    widths, rows = np.unique(round_up(np.asarray(lengths, np.int64), quantum), return_counts=True)
    return best_widths(widths.tolist(), rows.tolist(), count)


def best_widths(widths: Sequence[int], rows: Sequence[float], count: int) -> tuple[int, ...]:
    """The same from the widths that occur, ascending, and the rows of each.

    With n_j rows up to w_j and s_j their tokens, a bucket (i, j] costs w_j (n_j - n_i) - (s_j - s_i) tokens of padding:
    since the total of s is fixed, the least area w_j (n_j - n_i) is enough.
    """
    below = [0, *np.cumsum(rows).tolist()]
    area = [0, *(width * up_to for width, up_to in zip(widths, below[1:], strict=True))]
    choices: list[list[int]] = []  # of each number of buckets: where the last one begins
    for _ in range(min(count, len(widths)) - 1):
        area, cut = _one_more_bucket(area, widths, below)
        choices.append(cut)
    return _trace(choices, widths)


def _one_more_bucket(area: Sequence[float], widths: Sequence[int], below: Sequence[float]
                     ) -> tuple[list[float], list[int]]:
    """Least areas with one bucket more, and where the last bucket then begins. All [d + 1].

    min over i < j of area_i - n_i w_j: lines in w_j that fall ever more steeply, asked at rising w_j. So the lower
    hull is a queue, and all j take O(d) together (the convex hull trick).
    """
    hull: deque[int] = deque()
    better, cut = [0.0], [0]
    for j, width in enumerate(widths, 1):
        while len(hull) > 1 and _is_above(area, below, hull[-2], hull[-1], j - 1):
            hull.pop()
        hull.append(j - 1)
        while len(hull) > 1 and area[hull[1]] - area[hull[0]] <= (below[hull[1]] - below[hull[0]]) * width:
            hull.popleft()
        better.append(area[hull[0]] + width * (below[j] - below[hull[0]]))
        cut.append(hull[0])
    return better, cut


def _is_above(area: Sequence[float], below: Sequence[float], one: int, middle: int, other: int) -> bool:
    """Is the middle line nowhere the lowest of three? In the order of their slopes."""
    return ((area[middle] - area[one]) * (below[other] - below[middle])
            >= (area[other] - area[middle]) * (below[middle] - below[one]))


def _trace(choices: Sequence[Sequence[int]], widths: Sequence[int]) -> tuple[int, ...]:
    """Walk the cuts back from the widest bucket."""
    end, chosen = len(widths), []
    for cut in [*reversed(choices), [0] * (len(widths) + 1)]:
        if end:
            chosen.append(int(widths[end - 1]))
            end = cut[end]
    return tuple(reversed(chosen))


def heights(width: int, capacity: int) -> list[int]:
    """Rows that a micro-batch of this width may have, most first: 2^k and 3 x 2^k, so that half of each, rounded up, is
    one too, and those of other capacities are the same."""
    most = capacity // width
    powers = [1 << exponent for exponent in range(most.bit_length())]
    return sorted((height for power in powers for height in {power, power * 3 // 2} if height <= most), reverse=True)


def planned_shapes(widths: Sequence[int], capacity: int, quantum: int = QUANTUM) -> set[tuple[int, int]]:
    """Every (height, width) that micro-batches may have, the dummy's (1, quantum) included."""
    return {(1, quantum)} | {(height, width) for width in widths for height in heights(width, capacity)}


def pad(lengths: NDArray[np.int64], widths: Sequence[int], capacity: int, multiple: int, *, quantum: int = QUANTUM,
        crossover: float = ATTENTION_CROSSOVER, more: int = 0) -> list[Padded]:
    """Micro-batches of the rows, their number a multiple.

    Args:
        lengths: [n] falling.
        widths: ascending.
        more: multiples beyond the fewest that hold the rows.
    """
    widest_first = sorted(widths, reverse=True)
    bucket = len(widths) - 1 - np.searchsorted(widths, lengths)
    sizes = {width: size for width, size in zip(widest_first, np.bincount(bucket, minlength=len(widths)).tolist(),
                                                strict=True) if size}
    parts = Counter({part: number for width, size in sizes.items()
                     for part, number in _filled(width, size, heights(width, capacity)[0]) if number})
    total = (max(1, -(-parts.total() // multiple)) + more) * multiple
    _part(parts, min(total, len(lengths)), capacity, crossover)
    cut = [(part, rows) for part in sorted(parts, reverse=True) for rows in [part[1]] * parts[part]]
    ends = np.cumsum([rows for _, rows in cut], dtype=np.int64).tolist()
    filled = [(np.arange(end - rows, end), _height(width, rows, capacity), width)
              for ((width, rows), _), end in zip(cut, ends, strict=True)]
    return filled + [(np.arange(0), 1, quantum)] * (total - len(filled))


def _filled(width: int, size: int, most: int) -> list[tuple[Part, int]]:
    """Full micro-batches and the remainder of a bucket."""
    return [((width, most), size // most), ((width, size % most), int(size % most > 0))]


def _part(parts: Counter[Part], count: int, capacity: int, crossover: float) -> None:
    """Part the costliest micro-batch that has two rows until there are so many: a full one of half the height, and the
    rest, which may do with a lower one still. Together they never take more tokens than before."""
    def spent(part: Part) -> tuple[float, Part]:
        return _height(*part, capacity) * cost(part[0], crossover), part

    while parts.total() < count:
        width, rows = max((part for part, number in parts.items() if number and part[1] > 1), key=spent)
        lower = -(-_height(width, rows, capacity) // 2)
        parts.subtract([(width, rows)])
        parts.update([(width, lower), (width, rows - lower)])


def _height(width: int, rows: int, capacity: int) -> int:
    """The lowest height that holds so many rows."""
    return min(height for height in heights(width, capacity) if height >= rows)
