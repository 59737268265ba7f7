"""Which engine gets a request: the least loaded one, but a group stays where it began. Pure.

Load is the number of tokens that an engine may still have to produce (requests in flight x samples x cap), known
before anything is sampled.

Invariants:
    least_outstanding: a new group goes to an engine with the fewest outstanding tokens; among equals the lowest index.
    sticky: all requests of a group go to one engine (its prompt's KV is there), until that engine is avoided.
    conserved: outstanding tokens are those assigned and not released; never negative, zero when all are released.
"""

from __future__ import annotations


class Router:
    """Routes the requests of one fleet membership.

    Args:
        engines: number of engines, at least 1.
    """

    def __init__(self, engines: int) -> None:
        if engines < 1:
            raise ValueError("a fleet has at least one engine")
        self.outstanding = [0] * engines
        self._home: dict[int, int] = {}

    def assign(self, group: int, tokens: int, *, avoid: int | None = None) -> int:
        """Engine for a request of `group` that may produce `tokens`.

        Args:
            avoid: an engine that has just failed; taken all the same if there is no other.
        """
        home = self._home.get(group)
        if home is None or home == avoid:
            home = self._least(avoid)
        self._home[group] = home
        self.outstanding[home] += tokens
        return home

    def release(self, engine: int, tokens: int) -> None:
        """A request has been answered, or has failed."""
        if tokens > self.outstanding[engine]:
            raise ValueError(f"engine {engine} has {self.outstanding[engine]} outstanding tokens, not {tokens}")
        self.outstanding[engine] -= tokens

    def _least(self, avoid: int | None) -> int:
        others = [engine for engine in range(len(self.outstanding)) if engine != avoid]
        return min(others or range(len(self.outstanding)), key=lambda engine: (self.outstanding[engine], engine))
