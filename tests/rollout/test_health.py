"""The fleet's state machine over random histories, its invariants by name. Oracle: what was done to it."""

from __future__ import annotations

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from siri_megatron.rollout.health import LEGAL, LOADING, MEMBERS, FleetHealth, Key, Rules, Transition

ENGINES = 3
RULES = Rules(suspect_s=2.0, dead_s=6.0, start_timeout_s=20.0, hang_s=9.0, max_restarts=2, restart_backoff_s=1.0)
some_engine = st.integers(0, ENGINES - 1)


class History(RuleBasedStateMachine):
    """Everything that can happen to a fleet, in any order and with any pauses."""

    limits = RULES

    def __init__(self) -> None:
        super().__init__()
        self.now = 100.0
        self.health = FleetHealth.start(self.limits, ENGINES, self.now, epoch=5)
        self.running = set(range(ENGINES))
        self.asked = [self.now] * ENGINES  # when it was last asked with success, or started
        self.worked = [self.now] * ENGINES  # the same of its core
        self.with_weights: frozenset[Key] = frozenset()
        self.gone_at = [0.0] * ENGINES
        self.starts = [0] * ENGINES
        self.told: list[Transition] = []
        self.memberships = [self.members()]
        self.began, self.epoch, self.heard = False, 5, 0

    def members(self) -> frozenset[Key]:
        return frozenset(engine.key for engine in self.health.members())

    @rule(engine=some_engine)
    def answers(self, engine: int) -> None:
        if engine in self.running:
            self.asked[engine] = self.now
            if self.health.engines[engine].state in LOADING:
                self.worked[engine] = self.now
            self.health.answered(engine, self.now)
            self.now += 0.01

    @rule(engine=some_engine)
    def core_answers(self, engine: int) -> None:
        if engine in self.running and self.health.engines[engine].state in MEMBERS:
            self.worked[engine] = self.now
            self.health.worked(engine, self.now)
            self.now += 0.01

    @rule(engine=some_engine)
    def answered_before_its_process_started(self, engine: int) -> None:
        before = self.health.engines[engine].state
        self.health.answered(engine, self.asked[engine])
        assert self.health.engines[engine].state == before

    @rule(engine=some_engine)
    def exits(self, engine: int) -> None:
        if engine in self.running:
            self.running.remove(engine)
            self.gone_at[engine] = self.now
            self.health.exited(engine, self.now, "was killed")
            assert self.health.engines[engine].state == "dead"

    @rule(engine=some_engine, incarnation=st.integers(0, 2))
    def is_accused(self, engine: int, incarnation: int) -> None:
        present = self.health.engines[engine].key
        was_member = present in self.members()
        self.health.accused((engine, incarnation), "hangs")
        if present == (engine, incarnation):
            assert present not in self.members()
        else:
            assert (present in self.members()) == was_member

    @rule(which=st.sets(some_engine))
    def a_push_is_confirmed(self, which: set[int]) -> None:
        self.with_weights = frozenset(self.health.engines[engine].key for engine in which)
        self.health.confirm(self.with_weights)

    @rule()
    def a_push_fails_half_way(self) -> None:
        self.with_weights = frozenset()
        self.health.confirm(())
        assert self.health.serving() == []

    @rule(seconds=st.sampled_from([0.5, 1.5, 4.0, 7.0, 25.0]))
    def time_passes(self, seconds: float) -> None:
        for _ in range(int(seconds / 0.5)):
            self.now += 0.5
            self.health.tick(self.now)
        self.silence_ends()

    @rule(seconds=st.sampled_from([5.5, 60.0, 1e6]))
    def unwatched_is_not_silent(self, seconds: float) -> None:
        self.health.tick(self.now)
        before = [engine.state for engine in self.health.engines]
        self.now += seconds
        self.health.tick(self.now)
        assert [engine.state for engine in self.health.engines] == before
        self.asked = [asked + seconds for asked in self.asked]
        self.worked = [worked + seconds for worked in self.worked]

    @rule()
    def the_supervisor_acts(self) -> None:
        for engine in self.health.to_end():
            self.running.discard(engine)
            self.gone_at[engine] = self.now
            self.health.exited(engine, self.now, "ended by us")
        for engine in self.health.due(self.now):
            assert engine not in self.running, "gone_before_restart"
            assert self.now - self.gone_at[engine] >= self.limits.restart_backoff_s * 2 ** self.starts[engine]
            self.starts[engine] += 1
            self.running.add(engine)
            self.asked[engine] = self.now
            self.health.restarted(engine, self.now)
        self.health.tick(self.now)

    def hear(self) -> list[Transition]:
        self.told += self.health.news()
        return self.told

    @invariant()
    def legal(self) -> None:
        for transition in self.hear():
            assert transition.after in LEGAL[transition.before]
            assert transition.why
        for engine in self.health.engines:  # the news tell the whole story
            of_it = [transition for transition in self.told if transition.index == engine.index]
            assert [one.after for one in of_it[:-1]] == [one.before for one in of_it[1:]]
            assert (of_it[-1].after if of_it else "starting") == engine.state

    @invariant()
    def only_confirmed_serve(self) -> None:
        for engine in self.health.serving():
            assert engine.key in self.with_weights
            assert engine.key in self.members()
            confirmations = [one for one in self.hear() if one.index == engine.index and one.after == "stale"
                             and one.incarnation == engine.incarnation]
            assert confirmations, "it was stale first, in this incarnation"

    def silence_ends(self) -> None:
        for engine in self.health.engines:
            silent = self.now - self.asked[engine.index]
            if engine.state in ("healthy", "stale"):
                assert silent <= self.limits.suspect_s
            if engine.state in MEMBERS:
                assert silent <= self.limits.dead_s
                assert self.now - self.worked[engine.index] <= self.limits.hang_s, "hang_ends"
            if engine.state in ("starting", "restarting"):
                assert silent <= self.limits.start_timeout_s

    @invariant()
    def bounded(self) -> None:
        for engine in self.health.engines:
            assert engine.restarts == self.starts[engine.index] <= self.limits.max_restarts
            assert engine.state != "retired" or engine.index not in self.running

    @invariant()
    def epoch_is_membership(self) -> None:
        started, new = not self.health.loading(), self.hear()[self.heard:]
        if not self.began:
            assert self.health.epoch == 5 or started
        if self.began and (self.members() != self.memberships[-1]):
            assert self.health.epoch > self.epoch
        elif self.began:
            assert self.health.epoch >= self.epoch  # it may have left and come back within one rule
        if self.began and not [one for one in new if (one.before in MEMBERS) != (one.after in MEMBERS)]:
            assert self.health.epoch == self.epoch
        self.began, self.epoch, self.heard = started, self.health.epoch, len(self.told)
        self.memberships.append(self.members())


TestHistory = History.TestCase


def up(engines: int = 2, rules: Rules = RULES) -> FleetHealth:
    health = FleetHealth.start(rules, engines, 0.0, epoch=1)
    for engine in range(engines):
        health.answered(engine, 1.0)
    health.confirm([engine.key for engine in health.engines])
    return health


def states(health: FleetHealth) -> list[str]:
    return [engine.state for engine in health.engines]


def test_a_restarted_engine_serves_only_after_the_next_push() -> None:
    """The story of one loss (NeMo-RL's machine has the same stale state: a new engine has the wrong weights)."""
    health = up()
    assert (states(health), health.epoch) == (["healthy", "healthy"], 1)
    health.exited(0, 2.0, "was killed by SIGKILL")
    assert (states(health), health.epoch, health.due(2.5), health.due(3.0)) == (["dead", "healthy"], 2, [], [0])
    health.restarted(0, 3.0)
    health.answered(0, 2.9)  # asked before its start: of the old process
    assert states(health)[0] == "restarting"
    health.answered(0, 9.0)
    assert (states(health), health.epoch) == (["stale", "healthy"], 3)
    health.confirm([(0, 0), (1, 0)])  # the last push, to its former incarnation
    assert [engine.index for engine in health.serving()] == [1]
    health.confirm([(0, 1), (1, 0)])
    assert (states(health), health.epoch) == (["healthy", "healthy"], 3)


def test_restarts_are_bounded_and_pauses_double() -> None:
    health, now, pauses = up(1), 4.0, []
    while states(health) != ["retired"]:
        health.exited(0, now, "no memory")
        health.tick(now)
        due = next((pause for pause in (1.0, 2.0, 4.0) if health.due(now + pause)), 0.0)
        if due:
            pauses.append(due)
            now += due
            health.restarted(0, now)
    assert pauses == [1.0, 2.0]
    assert health.news()[-1].why == "was restarted 2 times already; no memory"


def test_a_suspect_that_answers_again_is_what_it_was() -> None:
    health = up()
    health.answered(1, 3.5)
    health.tick(4.0)
    assert states(health) == ["suspect", "healthy"]
    health.answered(0, 4.0)
    assert (states(health), health.epoch) == (["healthy", "healthy"], 1)


def test_hanging_engine_is_ended_before_it_is_restarted() -> None:
    health = up()
    health.accused((0, 0), "hangs")
    assert (states(health)[0], health.to_end(), health.due(99.0)) == ("dead", [0], [])
    health.exited(0, 5.0, "was killed by us")
    assert (health.engines[0].why, health.due(6.0)) == ("hangs", [0])


def test_a_core_that_answers_nothing_behind_a_server_that_does_is_a_dead_engine() -> None:
    health = up()
    for second in range(2, 12):
        for engine in (0, 1):
            health.answered(engine, float(second))
        health.worked(1, float(second))
        health.tick(float(second))
    assert states(health) == ["dead", "healthy"]
    assert (health.engines[0].why, health.to_end()) == ("its core has answered nothing for 9 s", [0])


def test_an_answer_of_the_core_before_a_restart_does_not_count() -> None:
    health = up(1)
    health.exited(0, 2.0, "was killed")
    health.restarted(0, 3.0)
    health.worked(0, 2.5)
    for second in range(3, 15):
        health.tick(float(second))
        health.answered(0, second + 0.5)
        assert (states(health) == ["dead"]) == (second > 3.5 + RULES.hang_s)


def test_an_answer_after_a_gap_is_of_its_time() -> None:
    """Nobody looked for an hour, and then at an answer of just now first: the engine was heard now, not in an hour."""
    health = up(1)
    health.answered(0, 3600.0)
    health.tick(3601.0)
    for second in range(3602, 3602 + int(RULES.dead_s) + 2):
        health.tick(float(second))
    assert states(health) == ["dead"]


def test_wrong_use_is_refused() -> None:
    with pytest.raises(ValueError, match="engine 0 is healthy: not due"):
        up().restarted(0, 5.0)
