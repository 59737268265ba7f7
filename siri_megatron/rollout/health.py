"""Which engines may serve: the health of a fleet as a state machine. Pure: the clock is an argument, nothing is done.

    starting ──answers──► stale ──weights confirmed──► healthy ──silent──► suspect ──silent──► dead
                            ▲ ◄──weights withdrawn──────┘  ▲ ◄──answers──────┘                   │ process gone,
                            └──answers── restarting ◄──────┼──────── back-off over ──────────────┤ restarts left
                                                           (any ──process exits, accused──► dead)└─► retired

The supervisor feeds it (answers of /health, exits of processes, what the weight push confirms and accuses, time) and
does what it says: kill an engine that is dead but not gone, restart one whose back-off is over, publish the members.

Invariants:
    legal: every change of state is one of `LEGAL`.
    only_confirmed_serve: an engine serves only if its weights were confirmed in its present incarnation and not
        withdrawn since; a restarted engine is stale first.
    hang_ends: an engine whose core has answered nothing for hang_s, though its server answers, is no member after
        `tick`; from the moment at which it has loaded on.
    silence_ends: an engine that has not answered for dead_s (start_timeout_s while it loads) is no member after `tick`.
    unwatched_is_not_silent: time between two ticks further apart than `BLINK_S` counts for nothing: whoever stopped the
        supervisor (a scheduler that suspends the job, say) may have stopped the engines too.
    gone_before_restart: an engine is restarted only when its process is gone, restart_backoff_s x 2^(restarts so far)
        after that, at most max_restarts times; then it is retired.
    epoch_is_membership: once all have been started, the epoch rises whenever the set of members changes, only then.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Literal

State = Literal["starting", "healthy", "suspect", "dead", "restarting", "stale", "retired"]
Key = tuple[int, int]
"""(index, incarnation): an engine process. A restarted engine has the same index and the next incarnation."""

BLINK_S = 5.0
"""The supervisor looks several times a second."""
MEMBERS: tuple[State, ...] = ("healthy", "suspect", "stale")
LOADING: tuple[State, ...] = ("starting", "restarting")
LEGAL: dict[State, tuple[State, ...]] = {
    "starting": ("stale", "dead"), "restarting": ("stale", "dead"),
    "stale": ("healthy", "suspect", "dead"), "healthy": ("stale", "suspect", "dead"),
    "suspect": ("healthy", "stale", "dead"), "dead": ("restarting", "retired"), "retired": ()}


@dataclass(frozen=True)
class Rules:
    """Seconds and counts; the meaning of each stands in `EngineConfig`."""

    suspect_s: float
    dead_s: float
    start_timeout_s: float
    hang_s: float
    max_restarts: int
    restart_backoff_s: float


@dataclass(frozen=True)
class Transition:
    index: int
    incarnation: int
    before: State
    after: State
    why: str


@dataclass
class EngineHealth:
    """One engine.

    Attributes:
        heard: when it last answered, or was started.
        worked: when its core last answered, or it had loaded.
        gone: of a dead one, when its process had ended.
    """

    index: int
    heard: float
    worked: float = 0.0
    state: State = "starting"
    incarnation: int = 0
    restarts: int = 0
    confirmed: bool = False
    gone: float | None = None
    why: str = ""

    @property
    def key(self) -> Key:
        return self.index, self.incarnation


@dataclass
class FleetHealth:
    """All engines of a run. Methods take the present time; what changed since `news` was called last, it tells.

    Args:
        engines: number of engines, all starting at `now`.
        epoch: the epoch of the first membership.
    """

    rules: Rules
    engines: list[EngineHealth]
    epoch: int
    ticked: float
    _news: list[Transition] = field(default_factory=list)
    _counted: frozenset[Key] | None = None  # members of the present epoch; None until all have been started

    @classmethod
    def start(cls, rules: Rules, engines: int, now: float, epoch: int) -> FleetHealth:
        return cls(rules, [EngineHealth(index, now) for index in range(engines)], epoch, now)

    # --- what happens

    def answered(self, index: int, at: float) -> None:
        """The engine has answered /health; `at`: when the question was sent."""
        engine = self.engines[index]
        if at <= engine.heard or engine.state in ("dead", "retired"):
            return  # asked before the present process was started, or before the last one was ended
        engine.heard = at
        if engine.state in LOADING:
            engine.worked = at
            self._move(engine, "stale", "answers")
        elif engine.state == "suspect":
            self._move(engine, "healthy" if engine.confirmed else "stale", "answers again")

    def worked(self, index: int, at: float) -> None:
        """The engine's core has answered; `at`: when the question was sent."""
        engine = self.engines[index]
        if engine.state in MEMBERS:
            engine.worked = max(engine.worked, at)

    def exited(self, index: int, now: float, why: str) -> None:
        """The process and its whole tree are gone."""
        engine = self.engines[index]
        if engine.state != "retired" and engine.gone is None:
            self._die(engine, why)
            engine.gone = now

    def accused(self, key: Key, why: str) -> None:
        """Somebody had to do with it and got no answer in time: it hangs, whatever /health says."""
        engine = self.engines[key[0]]
        if engine.key == key and engine.state in MEMBERS:
            self._die(engine, why)

    def confirm(self, keys: Iterable[Key]) -> None:
        """Exactly these have the newest weights; an empty list withdraws all (a push has failed half-way)."""
        held = frozenset(keys)
        for engine in self.engines:
            engine.confirmed = engine.state in MEMBERS and engine.key in held
            if engine.confirmed and engine.state == "stale":
                self._move(engine, "healthy", "has the newest weights")
            elif not engine.confirmed and engine.state == "healthy":
                self._move(engine, "stale", "lacks the newest weights")

    def tick(self, now: float) -> None:
        """What follows from time alone."""
        gap, self.ticked = now - self.ticked, now
        for engine in self.engines:
            unseen = gap if gap > BLINK_S else 0.0
            engine.heard, engine.worked = min(now, engine.heard + unseen), min(now, engine.worked + unseen)
            silent = now - engine.heard
            if engine.state in LOADING and silent > self.rules.start_timeout_s:
                self._die(engine, f"not healthy within {self.rules.start_timeout_s:g} s of its start")
            elif engine.state in MEMBERS and silent > self.rules.dead_s:
                self._die(engine, f"has not answered /health for {self.rules.dead_s:g} s")
            elif engine.state in MEMBERS and now - engine.worked > self.rules.hang_s:
                self._die(engine, f"its core has answered nothing for {self.rules.hang_s:g} s")
            elif engine.state in ("healthy", "stale") and silent > self.rules.suspect_s:
                self._move(engine, "suspect", f"has not answered /health for {self.rules.suspect_s:g} s")
            elif engine.state == "dead" and engine.gone is not None and self._spent(engine):
                self._move(engine, "retired", f"was restarted {engine.restarts} times already; {engine.why}")
        self._count_epoch()

    def restarted(self, index: int, now: float) -> None:
        """Its process was started again; allowed for those in `due`."""
        engine = self.engines[index]
        if index not in self.due(now):
            raise ValueError(f"engine {index} is {engine.state}: not due for a restart")
        engine.incarnation += 1
        engine.restarts += 1
        engine.heard, engine.gone = now, None
        self._move(engine, "restarting", f"restart {engine.restarts} of at most {self.rules.max_restarts}")

    # --- what follows

    def members(self) -> list[EngineHealth]:
        """Engines that are up: they take part in a push."""
        return [engine for engine in self.engines if engine.state in MEMBERS]

    def serving(self) -> list[EngineHealth]:
        """Engines that may be given requests."""
        return [engine for engine in self.engines if engine.state == "healthy"]

    def loading(self) -> list[EngineHealth]:
        """Engines that have not answered yet since the run began."""
        return [engine for engine in self.engines if engine.state == "starting"]

    def to_end(self) -> list[int]:
        """Dead, but their processes still exist."""
        return [engine.index for engine in self.engines if engine.state == "dead" and engine.gone is None]

    def due(self, now: float) -> list[int]:
        """To be started now."""
        return [engine.index for engine in self.engines
                if engine.state == "dead" and engine.gone is not None
                and not self._spent(engine) and now - engine.gone >= self._backoff(engine)]

    def news(self) -> Sequence[Transition]:
        """Transitions since the last call, oldest first."""
        news, self._news = self._news, []
        return news

    # --- inside

    def _backoff(self, engine: EngineHealth) -> float:
        return float(self.rules.restart_backoff_s * 2**engine.restarts)

    def _spent(self, engine: EngineHealth) -> bool:
        return engine.restarts >= self.rules.max_restarts

    def _die(self, engine: EngineHealth, why: str) -> None:
        if engine.state != "dead":
            engine.why, engine.confirmed = why, False
            self._move(engine, "dead", why)

    def _move(self, engine: EngineHealth, after: State, why: str) -> None:
        if after not in LEGAL[engine.state]:
            raise AssertionError(f"engine {engine.index}: {engine.state} -> {after}")
        self._news.append(Transition(engine.index, engine.incarnation, engine.state, after, why))
        engine.state = after
        self._count_epoch()

    def _count_epoch(self) -> None:
        members = frozenset(engine.key for engine in self.members())
        if self._counted is not None:
            self.epoch += members != self._counted
        if self._counted is not None or not self.loading():
            self._counted = members
