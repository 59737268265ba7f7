"""Which shapes padded micro-batches have, step after step: bucket widths and token capacity, with hysteresis. Pure.

    lengths of recent steps (a histogram that fades) ─┐
    longest row that the cap allows ──────────────────┼─► decide ─► widths, capacity ─► `buckets.planned_shapes`
    capacity at the cap for the widest rows ──────────┘

Every new shape costs a GPU a warm-up (kernels are chosen, attention plans built, memory blocks found). So the widths
lie on a grid of 16 edges an octave, which is also their margin; and what is in use stays:

- the widths, while they hold the longest row that may come and the best ones would save at most SAVING of the tokens.
  Else only the last width is moved, if that is enough; else the best ones are taken.
- the capacity, while it is at most what the cap allows and that is at most GROWTH larger.

A cap that moves goes on moving: a last width that has to rise rises further than it must by AHEAD, if the padding
allows, and a capacity that has to fall falls further.

Invariants:
- holds_the_longest: the last width holds every row that is there and every row that the cap allows.
- never_above_the_capacity: the capacity in use is at most the one given for the last width, and at least that width.
- never_wider_than_the_run: the last width is at most what the largest cap needs, unless a row is there that is longer.
- hysteresis: without a reason above, the shapes in use stay.
- close_to_the_best: the recent lengths, on the grid, are padded by at most SAVING of their tokens more than under the
  best widths of the grid.
- state_round_trip: save, load and go on decides as never stopping.
- deterministic: equal arguments in equal order give equal shapes, on every machine.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from siri_megatron.batching.buckets import best_widths, bucket_widths
from siri_megatron.batching.lengths import QUANTUM, round_up
from siri_megatron.batching.packing import Ints

Shapes = tuple[tuple[int, ...], int]
"""Bucket widths, ascending, and the token capacity."""
ShapeRule = Callable[[Ints, int, Callable[[int], int]], Shapes]
"""Lengths of the rows of a step [n], longest row that may come, width of the longest row -> capacity -> shapes."""

FADE = 0.75
"""Weight of a step's lengths against those of the next one: about four steps count."""
FORGET = 1e-3
"""Rows below which a cell of the histogram is dropped."""
EDGES = 16
"""Edges of the grid in an octave: a width is at most 1/16 wider than it would have to be."""
SAVING = 0.03
"""Share of the tokens that other widths must save to be worth their warm-up."""
GROWTH = 0.25
"""Share by which the capacity at the cap may exceed the one in use."""
AHEAD = 1 / 8
"""Share by which a last width that has to rise, or a capacity that has to fall, goes further than it must."""


def shapes_of(lengths: Ints, _: int, capacity_of: Callable[[int], int], *, count: int, quantum: int = QUANTUM
              ) -> Shapes:
    """The best shapes for these rows alone."""
    widths = bucket_widths(lengths, count, quantum)
    return widths, capacity_of(widths[-1])


class ShapePlanner:
    """Decides the shapes of a run's steps, in order. `decide` is a `ShapeRule`."""

    def __init__(self, count: int, quantum: int = QUANTUM, *, longest: int) -> None:
        """count: buckets; quantum: widths are multiples of it; longest: row that the largest cap allows, tokens."""
        self.count, self.quantum, self._widest = count, quantum, round_up(longest, quantum)
        self.widths: tuple[int, ...] = ()
        self.capacity = 0
        self.seen: set[tuple[int, int]] = set()
        self._recent: dict[int, float] = {}  # upper edge of a cell -> rows

    def decide(self, lengths: Ints, longest: int, capacity_of: Callable[[int], int]) -> Shapes:
        """Shapes for a step whose rows have these lengths.

        Args:
            longest: row that the cap allows, or that is there.
            capacity_of: tokens that a micro-batch may hold when its rows are so wide; at least the width.
        """
        self._observe(lengths)
        ends = on_grid(np.array([longest, int(longest * (1 + AHEAD))]), self.quantum)
        last, further = np.minimum(ends, max(self._widest, round_up(longest, self.quantum))).tolist()
        rises = bool(self.widths) and self.widths[-1] < longest
        self.widths = self._chosen(_cut(self._recent, last), longest, (further, last) if rises else (last,))
        self.capacity = self._chosen_capacity(capacity_of(self.widths[-1]))
        return self.widths, self.capacity

    def count_shapes(self, shapes: Iterable[tuple[int, int]]) -> dict[str, float]:
        """Take note of the (height, width) that a step ran. Returns its metrics."""
        new = set(shapes) - self.seen
        self.seen |= new
        return {"new_shapes": len(new), "shapes_seen": len(self.seen)}

    def state(self) -> dict[str, Any]:
        return {"quantum": self.quantum, "widths": list(self.widths), "capacity": self.capacity,
                "recent": [list(cell) for cell in sorted(self._recent.items())],
                "seen": [list(shape) for shape in sorted(self.seen)]}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Take over a state. Under another quantum (another layout) the lengths stay and the shapes are new."""
        same = state["quantum"] == self.quantum
        self.widths, self.capacity = (tuple(state["widths"]), state["capacity"]) if same else ((), 0)
        self.seen = {(height, width) for height, width in state["seen"] if same}
        self._recent = {}
        for edge, rows in state["recent"]:
            cell = edge if same else int(on_grid(np.array([edge]), self.quantum)[0])
            self._recent[cell] = self._recent.get(cell, 0.0) + rows

    def _observe(self, lengths: Ints) -> None:
        faded = {edge: rows * FADE for edge, rows in self._recent.items()}
        edges, rows = np.unique(on_grid(lengths, self.quantum), return_counts=True)
        for edge, number in zip(edges.tolist(), rows.tolist(), strict=True):
            faded[edge] = faded.get(edge, 0.0) + number
        self._recent = {edge: rows for edge, rows in sorted(faded.items()) if rows >= FORGET}

    def _chosen(self, cells: Mapping[int, float], longest: int, ends: Sequence[int]) -> tuple[int, ...]:
        """The first that do: the widths in use, those with another end, the best of widths that were used, the best."""
        best = best_widths(list(cells), list(cells.values()), self.count)
        limit = _area(cells, best) + SAVING * sum(edge * rows for edge, rows in cells.items())
        moved = [(*(width for width in self.widths[:-1] if width < end), end) for end in ends if self.widths]
        used = [_best_of({width for _, width in self.seen} | {end}, cells, self.count) for end in ends]
        return next((widths for widths in (self.widths, *moved, *used)
                     if widths and widths[-1] >= longest and _area(cells, widths) <= limit), best)

    def _chosen_capacity(self, capacity: int) -> int:
        needed, in_use = self.widths[-1], self.capacity
        if needed <= in_use <= capacity <= in_use * (1 + GROWTH):
            return in_use
        falls = in_use > capacity
        return max(needed, int(capacity * (1 - AHEAD)) if falls else capacity)


def on_grid(tokens: Ints, quantum: int = QUANTUM) -> Ints:
    """[n] the next edge of the grid: multiples of the quantum, from 32 quanta on of 2, 4, 8, ... quanta."""
    octave = np.frexp(np.asarray(tokens, np.int64) // (EDGES * quantum))[1] - 1
    step = quantum << np.maximum(octave, 0)
    return np.asarray(-(-tokens // step) * step, np.int64)


def _cut(recent: Mapping[int, float], last: int) -> dict[int, float]:
    """Rows by edge, ascending, those beyond the last edge in it; and one row of the last, since it may come."""
    cells = {edge: rows for edge, rows in recent.items() if edge < last}
    return cells | {last: 1.0 + sum(rows for edge, rows in recent.items() if edge >= last)}


def _best_of(widths: Iterable[int], cells: Mapping[int, float], count: int) -> tuple[int, ...]:
    """The best choice of these widths; they hold every cell."""
    given, rows = sorted(widths), Counter[int]()
    for edge, number in cells.items():
        rows[given[bisect_left(given, edge)]] += number  # type: ignore[assignment]
    found = sorted(rows)
    return best_widths(found, [rows[width] for width in found], count)


def _area(cells: Mapping[int, float], widths: tuple[int, ...]) -> float:
    """Tokens of the rows when padded to these widths; infinite if one does not fit."""
    if widths[-1] < max(cells):
        return float("inf")
    return sum(widths[bisect_left(widths, edge)] * rows for edge, rows in cells.items())
