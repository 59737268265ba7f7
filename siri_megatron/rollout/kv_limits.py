"""How many samples an engine may have in flight, by what it says of its KV cache. Pure: the clock is an argument.

    no limit ──pressed──► limit: 3/4 of what runs ──pressed again, once drained──► 3/4 of that ─► ...
       ▲                      │ room, and something was held back: up by an eighth
       └── max_num_seqs ◄─────┘

An engine that is sent everything at once queues by itself, and loses nothing by it, as long as its KV cache holds what
runs. When it does not, vLLM preempts: it throws away what a sample has computed, and computes it again later. Then less
at a time is more. An engine is pressed when it has preempted since it was last heard, or lets requests wait with a full
cache. The idea is prime-rl's (`orchestrator/concurrency.py`: feedback from preemptions); the rule here is our own.

Samples are counted until their whole group is answered, so what runs is less than what is in flight; the limit finds
its place all the same, for it moves by what the engine says.

Invariants:
    no_pressure_no_limit: an engine that was never pressed has no limit.
    one_group_always: an engine with nothing in flight takes a group of any size.
    never_above: with a limit, a group is admitted only if in flight is then within it (or it is alone).
    bounded: a limit is set to at least the largest group that was asked for, and otherwise below max_num_seqs.
    one_cut_at_a_time: while more is in flight than the limit allows, it does not fall further: what is seen is old.
    grows_if_it_binds: a limit grows only when it has held something back, nothing waits and the cache has room, and at
        most once in GROW_S.
    only_when: nothing here changes what is asked for.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field

from siri_megatron.rollout.health import Key

FULL = 0.95
"""Share of the KV cache from which a waiting request is a sign of pressure: below, it waits for its turn only."""
ROOM = 0.8
"""Share of the KV cache below which a limit may grow."""
CUT = 0.75
GROW_S = 1.0


@dataclass(frozen=True)
class Load:
    """What an engine says of itself."""

    kv_usage: float
    """Share of the KV cache that is in use."""
    running: int
    waiting: int
    """Samples."""
    preemptions: int
    """Since it was started."""


@dataclass
class _Engine:
    limit: int | None = None
    in_flight: int = 0
    preemptions: int | None = None
    held_back: bool = False
    moved: float = -math.inf


@dataclass
class KvLimits:
    """Of all engines.

    Args:
        max_num_seqs: samples that an engine runs at a time: a limit that reaches it is none.
    """

    max_num_seqs: int
    _group: int = 1  # samples of the largest group so far: alone it may be above a limit, which is no draining
    _engines: dict[Key, _Engine] = field(default_factory=dict)

    def change(self, engines: Iterable[Key]) -> None:
        """From now on these are the engines; others are forgotten once nothing of theirs is in flight."""
        members = set(engines)
        self._engines = {key: engine for key, engine in self._engines.items() if key in members or engine.in_flight}
        for key in members:
            self._engines.setdefault(key, _Engine())

    def has_room(self, key: Key, samples: int) -> bool:
        """May a new group of so many samples be sent there now?"""
        engine, self._group = self._engines[key], max(self._group, samples)
        room = engine.limit is None or not engine.in_flight or engine.in_flight + samples <= engine.limit
        engine.held_back |= not room
        return room

    def sent(self, key: Key, samples: int) -> None:
        """A request is sent. One of a group that has begun need not ask `has_room`: it has had its turn."""
        self._engines.setdefault(key, _Engine()).in_flight += samples

    def ended(self, key: Key, samples: int) -> None:
        """It is answered, or has failed."""
        self._engines[key].in_flight -= samples

    def hear(self, key: Key, load: Load, now: float) -> None:
        """An engine has said how it is."""
        engine = self._engines.setdefault(key, _Engine())
        preempted = engine.preemptions is not None and load.preemptions > engine.preemptions
        engine.preemptions = load.preemptions
        if engine.limit is not None and engine.in_flight > max(engine.limit, self._group):
            return
        if preempted or (load.waiting and load.kv_usage >= FULL):
            base = load.running if engine.limit is None else engine.limit
            engine.limit, engine.moved = max(self._group, min(int(CUT * base), self.max_num_seqs - 1)), now
        elif engine.limit is not None and engine.held_back and not load.waiting and load.kv_usage < ROOM:
            self._grow(engine, now)
        engine.held_back = False

    def limit(self, key: Key) -> int | None:
        """Samples that may be in flight there; None: no limit."""
        return self._engines[key].limit

    def in_flight(self, key: Key) -> int:
        return self._engines[key].in_flight if key in self._engines else 0

    def _grow(self, engine: _Engine, now: float) -> None:
        assert engine.limit is not None
        if now - engine.moved < GROW_S:
            return
        grown = engine.limit + max(1, engine.limit // 8)
        engine.limit, engine.moved = (grown if grown < self.max_num_seqs else None), now
