"""The router's invariants over random histories of a changing fleet. Oracle: a plain list of what is in flight."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from siri_megatron.rollout.router import Router

engines = st.sets(st.integers(0, 4), min_size=1)
history = st.lists(st.tuples(st.integers(0, 6), st.integers(1, 50), st.booleans(), st.none() | engines), max_size=40)


@given(engines, history)
def test_least_outstanding_sticky_conserved_members_only(
        fleet: set[int], steps: list[tuple[int, int, bool, set[int] | None]]) -> None:
    router, flying, homes = Router(fleet), [], {}
    for group, tokens, release, changed in steps:
        if changed is not None:
            fleet = changed
            router.change(fleet)
            homes = {group: engine for group, engine in homes.items() if engine in fleet}
        load = {engine: sum(t for e, t in flying if e == engine) for engine in fleet | {e for e, _ in flying}}
        assert router.outstanding == load
        engine = router.assign(group, tokens)
        assert engine in fleet
        assert engine == homes.get(group, min(sorted(fleet), key=lambda e: load[e]))
        homes[group] = engine
        flying.append((engine, tokens))
        if release:
            router.release(*flying.pop(0))
    for engine, tokens in flying:
        router.release(engine, tokens)
    assert router.outstanding == dict.fromkeys(fleet, 0)


def test_avoided_engine_is_left_and_not_returned_to() -> None:
    router = Router(range(3))
    assert router.assign(7, 10) == 0
    assert router.assign(7, 10, avoid={0}) == 1
    assert router.assign(7, 10) == 1
    assert router.assign(7, 10, avoid={0, 1}) == 2
    assert Router([0]).assign(7, 10, avoid={0}) == 0  # no other engine


def test_full_waits() -> None:
    """A group that has begun goes on where it is; a new one goes to an engine that is not full, or to none."""
    router = Router(range(2))
    assert router.assign(7, 10) == 0
    assert router.assign(7, 10, full={0, 1}) == 0
    assert router.assign(8, 50, full={0}) == 1
    assert router.assign(9, 10, full={1}) == 0
    assert router.assign(5, 10, full={0, 1}) is None
    assert router.assign(5, 10, avoid={0}, full={1}) is None  # it waits rather than go where it has just failed
    assert router.outstanding == {0: 30, 1: 50}


def test_finished_groups_hold_no_place() -> None:
    """Group 0 of the next step goes where there is room, not where group 0 of this step was."""
    router = Router(range(2))
    assert router.assign(0, 10) == 0
    router.release(0, 10)
    router.forget(set(router.homes))
    router.assign(5, 10)
    assert router.assign(0, 10) == 1


def test_wrong_use_is_refused() -> None:
    with pytest.raises(ValueError, match="no engine"):
        Router([]).assign(0, 1)
    with pytest.raises(ValueError, match="outstanding"):
        Router([0]).release(0, 1)
