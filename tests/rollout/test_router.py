"""The router's invariants over random histories. Oracle: a plain list of what is in flight."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from siri_megatron.rollout.router import Router

history = st.lists(st.tuples(st.integers(0, 6), st.integers(1, 50), st.booleans()), max_size=40)


@given(st.integers(1, 4), history)
def test_least_outstanding_sticky_and_conserved(engines: int, steps: list[tuple[int, int, bool]]) -> None:
    router, flying, homes = Router(engines), [], {}
    for group, tokens, release in steps:
        before = [sum(t for e, t in flying if e == engine) for engine in range(engines)]
        assert router.outstanding == before
        engine = router.assign(group, tokens)
        assert engine == homes.get(group, before.index(min(before)))
        homes[group] = engine
        flying.append((engine, tokens))
        if release:
            router.release(*flying.pop(0))
    for engine, tokens in flying:
        router.release(engine, tokens)
    assert router.outstanding == [0] * engines


def test_avoided_engine_is_left_and_not_returned_to() -> None:
    router = Router(3)
    assert router.assign(7, 10) == 0
    assert router.assign(7, 10, avoid=0) == 1
    assert router.assign(7, 10) == 1
    assert Router(1).assign(7, 10, avoid=0) == 0  # no other engine


def test_wrong_use_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one"):
        Router(0)
    with pytest.raises(ValueError, match="outstanding"):
        Router(1).release(0, 1)
