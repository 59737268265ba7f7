"""What the generated families share: a problem, the split by a hash of its content, tiers that take turns. Pure."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass
from typing import Literal, TypeVar

Split = Literal["train", "eval"]
Terms = TypeVar("Terms", bound=Hashable)

HELD_OUT = 10  # one problem in so many is held out
REDRAWS = 64  # the smallest tiers have few problems: after so many redraws a repetition is accepted


@dataclass(frozen=True)
class Problem:
    """One question. `tier` is `k=<number of terms>`; evaluation reports tiers apart."""

    id: str
    prompt: str
    answer: str
    tier: str


def held_out_by(content: str) -> bool:
    """Whether the problem of this content belongs to the evaluation split: its CRC-32 decides, for every seed."""
    return zlib.crc32(content.encode()) % HELD_OUT == 0


def fresh_by_turns(draw: Callable[[int], Terms], tiers: range) -> Iterator[Terms]:
    """`draw(tier)` for every tier in turn, without end; distinct while the tier has fresh ones."""
    seen: set[Terms] = set()
    while True:
        for tier in tiers:
            terms = draw(tier)
            for _ in range(REDRAWS):
                if terms not in seen:
                    break
                terms = draw(tier)
            seen.add(terms)
            yield terms
