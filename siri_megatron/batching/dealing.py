"""Dealing micro-batches to data-parallel ranks: the same count for everyone, about the same cost.

Data-parallel ranks wait for each other once an optimizer step, so the sums over ranks count, not single micro-batches.
Costliest first, each micro-batch goes to the lightest rank that still has a place (LPT with equal cardinality).

Invariants:
- each_once: every micro-batch goes to exactly one rank.
- equal_counts: every rank gets the same number.
- costliest_first: within a rank the costs fall, so memory peaks at the first micro-batch and not in the middle.
- balanced: the heaviest rank exceeds the lightest by at most the costliest micro-batch.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence


def deal(costs: Sequence[float], ranks: int) -> list[list[int]]:
    """Numbers of the micro-batches of each rank. The number of micro-batches is a multiple of the ranks."""
    places = len(costs) // ranks
    hands: list[list[int]] = [[] for _ in range(ranks)]
    heap = [(0.0, rank) for rank in range(ranks)]
    for item in sorted(range(len(costs)), key=lambda item: (-costs[item], item)):
        load, rank = heapq.heappop(heap)
        hands[rank].append(item)
        if len(hands[rank]) < places:
            heapq.heappush(heap, (load + costs[item], rank))
    return hands
