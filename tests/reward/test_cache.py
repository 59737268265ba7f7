"""Each pair is judged once. Oracle: a plain list of the pairs in the order of their use."""

from __future__ import annotations

import asyncio
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from siri_megatron.reward.alarm import verifier_alarm
from siri_megatron.reward.cache import SharedVerdicts


@given(st.lists(st.integers(0, 6), max_size=40), st.integers(1, 4))
def test_bounded_and_least_recently_used(asked: list[int], size: int) -> None:
    judged: list[int] = []

    async def judge(pair: int) -> float:
        judged.append(pair)
        return float(pair)

    async def run() -> None:
        cache, known = SharedVerdicts(size), []
        expected = []
        for pair in asked:
            if pair in known:
                known.remove(pair)
            else:
                expected.append(pair)
            known = [*known, pair][-size:]
            assert await cache.get(pair, lambda pair=pair: judge(pair)) == pair
        assert judged == expected
        assert len(cache._known) <= size

    asyncio.run(run())


def test_one_judgement_a_pair_also_at_the_same_time() -> None:
    calls = 0

    async def judge() -> float:
        nonlocal calls
        calls += 1
        await asyncio.sleep(0.01)
        return 1.0

    async def run() -> list[float]:
        cache = SharedVerdicts(4)
        return await asyncio.gather(*(cache.get(("7", "8"), judge) for _ in range(10)))

    assert asyncio.run(run()) == [1.0] * 10
    assert calls == 1


def test_failures_are_not_kept() -> None:
    answers = iter([math.nan, RuntimeError("broken"), 1.0, 0.0])

    async def judge() -> float:
        answer = next(answers)
        if isinstance(answer, Exception):
            raise answer
        return answer

    async def run() -> None:
        cache = SharedVerdicts(4)
        assert math.isnan(await cache.get("pair", judge))
        with pytest.raises(RuntimeError, match="broken"):
            await cache.get("pair", judge)
        assert [await cache.get("pair", judge) for _ in range(3)] == [1.0] * 3

    asyncio.run(run())


def test_cancelling_one_harms_none() -> None:
    async def run() -> float:
        cache, go = SharedVerdicts(4), asyncio.Event()

        async def judge() -> float:
            await go.wait()
            return 1.0

        first, second = (asyncio.create_task(cache.get("pair", judge)) for _ in range(2))
        await asyncio.sleep(0)
        first.cancel()
        await asyncio.sleep(0)
        go.set()
        return await second

    assert asyncio.run(run()) == 1.0


@pytest.mark.parametrize(("failed", "samples", "limit", "loud"), [
    (0, 0, 0.0, False), (0, 100, 0.0, False), (1, 100, 0.0, True), (5, 100, 0.05, False), (6, 100, 0.05, True),
    (100, 100, 1.0, False)])
def test_silent_up_to_the_limit(failed: int, samples: int, limit: float, loud: bool) -> None:
    message = verifier_alarm(failed, samples, limit)
    assert (message is not None) == loud
    assert not message or f"{failed} of {samples}" in message
