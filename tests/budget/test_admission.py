"""Admission under the invariants' names: every interleaving of pushes, steps and samples that a run can have."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from siri_megatron.budget.admission import admissible, allowed, staleness, steps_heard

runs = st.tuples(st.integers(0, 4), st.integers(1, 12), st.lists(st.integers(0, 99), max_size=120))
"""(lag, steps, what happens next: chooses among what is possible)"""


@dataclass
class World:
    """A run as it may happen: samples take any time, a push may come long after the step was trained."""

    lag: int
    steps: int
    next_step: int = 0
    pushed: int = -1
    admitted: list[int] = field(default_factory=list)
    spans: dict[int, set[int]] = field(default_factory=dict)
    finished: set[int] = field(default_factory=set)
    consumed: list[int] = field(default_factory=list)
    rule: Callable[..., range] = admissible

    def open(self) -> list[int]:
        return [step for step in self.admitted if step not in self.finished]

    def moves(self) -> list[tuple[str, int]]:
        """What can happen now. Tokens are sampled under the newest pushed weights, as engines do."""
        found = [("token", step) for step in self.open() if self.pushed >= 0]
        found += [("finish", step) for step in self.open() if self.spans[step]]
        found += [("push", self.next_step)] if self.pushed < self.next_step else []
        # Training waits for the push that the loop makes after each step.
        ready = self.pushed == self.next_step and self.next_step in self.finished
        return found + ([("train", self.next_step)] if ready else [])

    def do(self, move: tuple[str, int]) -> None:
        kind, step = move
        if kind == "token":
            self.spans[step].add(self.pushed)
        elif kind == "finish":
            self.finished.add(step)
        elif kind == "push":
            self.pushed = step
        else:
            self.consumed.append(step)
            self.next_step += 1
        for ahead in self.rule(self.next_step, pushed=self.pushed, lag=self.lag, steps=self.steps):
            if ahead not in self.spans:
                self.admitted.append(ahead)
                self.spans[ahead] = set()


def played(run: Any, rule: Callable[..., range] = admissible) -> list[World]:
    """The world after each move, played to the end of the run once the choices are used up."""
    lag, steps, choices = run
    world, seen = World(lag, steps, rule=rule), []
    for choice in [*choices, *[0, -1] * 8 * steps]:
        moves = world.moves()
        if not moves or world.next_step == steps:
            break
        world.do(moves[choice % len(moves)])
        seen.append(World(lag, steps, world.next_step, world.pushed, list(world.admitted),
                          {step: set(found) for step, found in world.spans.items()}, set(world.finished),
                          list(world.consumed)))
    return seen


@given(runs)
def test_staleness_bounded(run):
    for world in played(run):
        for step, versions in world.spans.items():
            assert all(0 <= staleness(step, version) <= world.lag for version in versions)
            assert all(allowed(step, version, world.lag) for version in versions)


@given(runs)
def test_slots_bounded(run):
    for world in played(run):
        assert len(world.admitted) - len(world.consumed) <= world.lag + 1


@given(runs)
def test_in_order(run):
    """None is left out, and none is trained twice or skipped."""
    for world in played(run):
        assert world.admitted == list(range(len(world.admitted)))
        assert world.consumed == list(range(len(world.consumed)))
        assert len(world.admitted) <= world.steps


@given(runs)
def test_never_stuck(run):
    assert played(run)[-1].consumed == list(range(run[1]))


@given(st.integers(0, 20), st.integers(-1, 20), st.integers(0, 20))
def test_synchronous_without_lag(next_step, pushed, steps):
    found = list(admissible(next_step, pushed=min(pushed, next_step), lag=0, steps=steps))
    assert found == ([next_step] if pushed >= next_step and next_step < steps else [])


@given(runs)
def test_decided_by_what_was_heard(run):
    """A step is never admitted before the steps that it may hear of are consumed."""
    for world in played(run):
        assert all(steps_heard(step, world.lag) <= len(world.consumed) for step in world.admitted)


def test_negative_control_admission_by_consumption_alone():
    """A step admitted when another is consumed, not when its weights are pushed, may get tokens a step too old."""
    def early(next_step: int, *, pushed: int, lag: int, steps: int) -> range:
        return range(next_step, min(next_step + lag + 1, steps))

    worlds = [world for choice in range(3) for world in played((1, 4, [choice] * 60), early)]
    assert any(not allowed(step, version, 1)
               for world in worlds for step, found in world.spans.items() for version in found)


def test_by_hand():
    assert list(admissible(0, pushed=-1, lag=2, steps=9)) == [0, 1]
    assert list(admissible(3, pushed=3, lag=2, steps=9)) == [3, 4, 5]
    assert list(admissible(3, pushed=2, lag=2, steps=9)) == [3, 4]
    assert list(admissible(8, pushed=8, lag=2, steps=9)) == [8]
    assert list(admissible(9, pushed=9, lag=2, steps=9)) == []
    assert [allowed(5, version, 2) for version in (2, 3, 5, 6)] == [False, True, True, False]
