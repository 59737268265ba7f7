"""The micro-batches of an optimizer step: packed (`packing`) or padded (`buckets`), dealt and put in order (`dealing`).

Invariants (of both modes; each part's own stand there):
- each_row_once: every row is in exactly one micro-batch of one rank.
- equal_counts: every rank has the same number of micro-batches, a multiple of `multiple`.
- no_bin_over_capacity: no micro-batch exceeds the capacity (packed: width; bucketed: height x width).

Empty micro-batches: where a rank has fewer rows than places, some have `rows=()` and width 8 x cp. The learner runs
them as a dummy of one token with zero weight and padding, so that every rank makes the same collectives.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal

import numpy as np

from siri_megatron.batching.buckets import Padded, pad
from siri_megatron.batching.dealing import deal, place, running_order
from siri_megatron.batching.lengths import ATTENTION_CROSSOVER, cost, round_up, row_quantum, segment_room
from siri_megatron.batching.packing import Costs, Ints

UNEVEN = 1.01
"""Cost of the heaviest rank over the mean above which padded micro-batches are cut smaller."""
TRIES = 4
"""Numbers of padded micro-batches that are tried for that: the fewest, and one, two, ... multiples more."""


@dataclass(frozen=True)
class MicroBatch:
    """Rows that go through the model together."""

    rows: tuple[int, ...]
    """Row numbers in ledger order of the step; empty: a dummy."""
    width: int
    """Packed: tokens of the one row [1, width], padding included. Bucketed: padded length."""
    height: int = 1
    """Bucketed: rows of [height, width]; those beyond `rows` are empty."""

    @property
    def shape(self) -> tuple[int, int]:
        return self.height, self.width

    @property
    def padded_tokens(self) -> int:
        """Tokens that run through the model, padding included."""
        return self.height * self.width


Hand = tuple[list[MicroBatch], Costs]
"""Micro-batches of a rank, and their costs."""


@dataclass(frozen=True)
class OptimizerStep:
    """One update of the weights."""

    ranks: tuple[tuple[MicroBatch, ...], ...]
    """[data-parallel rank][micro-batch], equally many on every rank."""


def optimizer_step(rows: Ints, lengths: Ints, mode: Literal["packed", "bucketed"], capacity: int, *, dp: int,
                   multiple: int, widths: Sequence[int] = (), cp: int = 1,
                   crossover: float = ATTENTION_CROSSOVER) -> OptimizerStep:
    """Micro-batches of some rows, dealt to the ranks, each rank's in the order in which it runs them.

    Args:
        rows: [m] row numbers, ascending.
        lengths: [m] tokens fed, each at most the capacity.
        widths: bucketed: the buckets' padded widths, ascending, the last at least as wide as the longest row.
        cp: context-parallel ranks; the capacity and the widths are multiples of `row_quantum(cp)`.
        crossover: length at which attention costs as much as the rest.
    """
    longest_first = np.argsort(-lengths, kind="stable")
    rows, lengths = rows[longest_first], lengths[longest_first]
    if mode == "packed":
        hands = _packed(rows, lengths, capacity, dp, multiple, cp, crossover)
    else:
        cut = partial(pad, lengths, widths, capacity, dp * multiple, quantum=row_quantum(cp), crossover=crossover)
        hands = _padded(rows, cut, dp, crossover)
    return OptimizerStep(tuple(tuple(own[item] for item in running_order(spent, pipeline=multiple > 1).tolist())
                               for own, spent in hands))


def _padded(rows: Ints, cut: Callable[..., list[Padded]], dp: int, crossover: float) -> list[Hand]:
    """Micro-batches of each rank, and their costs: as few as hold the rows, or more if that evens the ranks."""
    tries = []
    for more in range(TRIES):
        padded = cut(more=more)
        costs = np.array([height * cost(width, crossover) for _, height, width in padded])
        hands = deal(costs, dp)
        tries.append((max(float(costs[hand].sum()) for hand in hands), more, padded, costs, hands))
        if tries[-1][0] <= UNEVEN * costs.sum() / dp:
            break
    _, _, padded, costs, hands = min(tries, key=lambda tried: tried[:2])
    micros = [MicroBatch(tuple(rows[part].tolist()), width, height) for part, height, width in padded]
    return [([micros[item] for item in hand.tolist()], costs[hand]) for hand in hands]


def _packed(rows: Ints, lengths: Ints, capacity: int, dp: int, multiple: int, cp: int, crossover: float
            ) -> list[Hand]:
    """Micro-batches of each rank, and their costs; padding is computed too."""
    rooms, costs, quantum = segment_room(lengths, cp), cost(lengths, crossover), row_quantum(cp)
    bins, count = place(rooms, costs, capacity, dp, multiple)
    filled, real, spent = (np.bincount(bins, values, dp * count) for values in (rooms, lengths, costs))
    widths = np.maximum(round_up(filled.astype(np.int64), quantum), quantum)
    ends = np.cumsum(np.bincount(bins, minlength=dp * count)).tolist()
    in_bins = rows[np.argsort(bins, kind="stable")].tolist()
    micros = [MicroBatch(tuple(in_bins[begin:end]), width)
              for begin, end, width in zip([0, *ends], ends, widths.tolist(), strict=False)]
    by_bin = spent + widths - real
    return [(micros[first:first + count], by_bin[first:first + count]) for first in range(0, dp * count, count)]
