"""Which engine gets a request: the least loaded one, but a group stays where it began. Pure.

Load is the number of tokens that an engine may still have to produce (requests in flight x samples x cap), known
before anything is sampled.

Invariants:
    least_outstanding: a new group goes to an engine with the fewest outstanding tokens; among equals the lowest key.
    sticky: all requests of a group go to one engine (its prompt's KV is there), until that engine leaves or is avoided.
    conserved: outstanding tokens are those assigned and not released, also of an engine that has left meanwhile; never
        negative, zero when all are released.
    members_only: a request goes to an engine of the present set.
    full_waits: no group begins on an engine that is full.
"""

from __future__ import annotations

from collections.abc import Collection, Hashable, Iterable
from typing import Generic, TypeVar

E = TypeVar("E", int, tuple[int, int])
G = TypeVar("G", bound=Hashable)


class Router(Generic[E, G]):
    """Routes requests over a set of engines that changes.

    Args:
        engines: keys of the engines; a restarted engine has another key, for nothing of the old one is there.
    """

    def __init__(self, engines: Iterable[E]) -> None:
        self._engines: set[E] = set()
        self.outstanding: dict[E, int] = {}
        self._home: dict[G, E] = {}
        self.change(engines)

    def change(self, engines: Iterable[E]) -> None:
        """From now on these are the engines. What is in flight elsewhere is still to be released."""
        self._engines = set(engines)
        self._home = {group: engine for group, engine in self._home.items() if engine in self._engines}
        for engine in self._engines:
            self.outstanding.setdefault(engine, 0)
        self._forget_idle()

    def assign(self, group: G, tokens: int, *, avoid: Collection[E] = (), full: Collection[E] = ()) -> E | None:
        """Engine for a request of `group` that may produce `tokens`; None if every one that could take it is full.

        Args:
            avoid: engines that have just failed; taken all the same if there are no others.
            full: engines that take no new group now; one that has begun there goes on.

        Raises:
            ValueError: there is no engine.
        """
        home = self._home.get(group)
        if home is None or home in avoid:
            home = self._least(avoid, full)
        if home is None:
            return None
        self._home[group] = home
        self.outstanding[home] += tokens
        return home

    def release(self, engine: E, tokens: int) -> None:
        """A request has been answered, or has failed."""
        if tokens > self.outstanding.get(engine, 0):
            raise ValueError(f"engine {engine} has {self.outstanding.get(engine, 0)} outstanding tokens, not {tokens}")
        self.outstanding[engine] -= tokens
        self._forget_idle()

    @property
    def homes(self) -> Collection[G]:
        """The groups that have an engine."""
        return self._home.keys()

    def forget(self, groups: Iterable[G]) -> None:
        """These groups are finished."""
        for group in groups:
            self._home.pop(group, None)

    def _least(self, avoid: Collection[E], full: Collection[E]) -> E | None:
        if not self._engines:
            raise ValueError("there is no engine to assign to")
        others = self._engines.difference(avoid) or self._engines
        return min(others.difference(full), key=lambda engine: (self.outstanding[engine], engine), default=None)

    def _forget_idle(self) -> None:
        """An engine that has left stays known until its last request is released."""
        self.outstanding = {engine: tokens for engine, tokens in self.outstanding.items()
                            if tokens or engine in self._engines}
