"""The limits' invariants over random histories of requests and of what engines say."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from siri_megatron.rollout.kv_limits import FULL, GROW_S, ROOM, KvLimits, Load

KEY = (0, 0)
MOST = 64
loads = st.builds(Load, st.floats(0, 1), st.integers(0, MOST), st.sampled_from([0, 0, 3]), st.integers(0, 5))
events = st.lists(st.one_of(loads, st.integers(1, 20), st.none()), max_size=60)
"""What an engine says; a group of so many samples that wants to be sent; the end of the oldest one in flight."""


def pressed(load: Load, before: Load | None) -> bool:
    return (before is not None and load.preemptions > before.preemptions) or (
        load.waiting > 0 and load.kv_usage >= FULL)


@given(events, st.floats(0.1, 3))
def test_invariants(history: list[Load | int | None], apart_s: float) -> None:
    limits, flying, heard, ever, moved, group = KvLimits(MOST), list[int](), None, False, -1e9, 1
    limits.change([KEY])
    for number, event in enumerate(history):
        now, before, refused = number * apart_s, limits.limit(KEY), False
        if isinstance(event, Load):
            limits.hear(KEY, event, now)
            after, drained = limits.limit(KEY), before is None or sum(flying) <= max(before, group)
            ever |= pressed(event, heard)
            if not drained:
                assert after == before  # one_cut_at_a_time
            elif pressed(event, heard):
                assert after is not None
                assert after <= max(group, int(0.75 * (event.running if before is None else before)))
            elif before is not None and after != before:
                assert event.kv_usage < ROOM  # grows_if_it_binds
                assert not event.waiting
                assert now - moved >= GROW_S
                assert after is None or before < after <= before + max(1, before // 8)
            moved = now if after != before else moved
            heard = event
        elif isinstance(event, int):
            refused, group = not limits.has_room(KEY, event), max(group, event)
            assert refused == (before is not None and bool(flying) and sum(flying) + event > before)  # never_above
            if not refused:
                limits.sent(KEY, event)
                flying.append(event)
        elif flying:
            limits.ended(KEY, flying.pop(0))
        assert limits.in_flight(KEY) == sum(flying)
        assert ever or limits.limit(KEY) is None  # no_pressure_no_limit
        assert limits.limit(KEY) is None or limits.limit(KEY) < MOST  # bounded
        if isinstance(event, Load) and limits.limit(KEY) is not None and limits.limit(KEY) != before:
            assert limits.limit(KEY) >= group


def test_one_group_always_and_a_limit_that_binds_grows() -> None:
    limits = KvLimits(MOST)
    limits.change([KEY])
    limits.hear(KEY, Load(1.0, 2, 5, 0), 0.0)
    assert limits.limit(KEY) == 1
    assert limits.has_room(KEY, 8)
    limits.sent(KEY, 8)
    assert not limits.has_room(KEY, 8)
    limits.ended(KEY, 8)
    quiet = Load(0.1, 1, 0, 0)
    limits.hear(KEY, quiet, 0.5)
    assert limits.limit(KEY) == 1  # too early
    seen = []
    for second in range(1, 60):
        limits.sent(KEY, 1)
        limits.has_room(KEY, 100)
        limits.ended(KEY, 1)
        limits.hear(KEY, quiet, float(second))
        seen.append(limits.limit(KEY))
    assert seen[:3] == [2, 3, 4]
    assert seen[-1] is None  # as much as the engine runs: no limit


def test_a_limit_of_one_group_can_grow() -> None:
    """While its only group is in flight, which is all the time: else one bad moment would slow the engine for ever."""
    limits = KvLimits(MOST)
    limits.change([KEY])
    assert limits.has_room(KEY, 8)
    limits.sent(KEY, 8)
    for second in range(4):
        limits.hear(KEY, Load(1.0, 8, 5, 0), float(second))
    assert limits.limit(KEY) == 8
    for second in range(4, 16):
        limits.has_room(KEY, 8)
        limits.hear(KEY, Load(0.1, 8, 0, 0), float(second))
    assert limits.limit(KEY) >= 16
    assert limits.has_room(KEY, 8)


def test_a_limit_that_holds_nothing_back_stays() -> None:
    limits = KvLimits(MOST)
    limits.change([KEY])
    limits.hear(KEY, Load(1.0, 32, 5, 0), 0.0)
    for second in range(1, 9):
        limits.hear(KEY, Load(0.1, 1, 0, 0), float(second))
    assert limits.limit(KEY) == 24


def test_what_was_before_the_first_word_is_no_pressure_and_who_left_is_forgotten() -> None:
    limits, other = KvLimits(MOST), (0, 1)
    limits.change([KEY])
    limits.hear(KEY, Load(0.5, 9, 0, preemptions=400), 0.0)
    assert limits.limit(KEY) is None
    limits.sent(KEY, 3)
    limits.change([other])
    assert limits.in_flight(KEY) == 3  # its request has not ended yet
    limits.ended(KEY, 3)
    limits.change([other])
    assert limits.in_flight(KEY) == 0
    assert limits.limit(other) is None
