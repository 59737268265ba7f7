"""Which questions an evaluation asks."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from siri_megatron.config import EvalConfig
from siri_megatron.data.prompts import Prompt, PromptSet
from siri_megatron.errors import ConfigError
from siri_megatron.rollout.suites import Suite, admitted, suites_of

suites_ = st.lists(st.tuples(st.integers(1, 50), st.integers(1, 12)), min_size=1, max_size=5)


def prompts(n: int) -> PromptSet:
    return PromptSet(tuple(Prompt(str(i), "q", (1,), "a") for i in range(n)), 0, ("0", 1))


def made(sets: dict[str, int], **keys: Any) -> list[Suite]:
    names = [name for name in sets if name != "held-out"]
    suites = [{"name": name, "data": f"{name}.jsonl"} | keys.pop(name, {}) for name in names]
    return suites_of(EvalConfig(suites=suites, **keys), {name: prompts(n) for name, n in sets.items()})


@given(suites_, st.integers(0, 2000))
def test_within_and_fair(suites: list[tuple[int, int]], limit: int) -> None:
    costs, counts = zip(*suites, strict=True)
    asked = admitted(costs, counts, limit)
    spent = sum(cost * n for cost, n in zip(costs, asked, strict=True))
    assert spent <= limit
    assert all(n <= count for n, count in zip(asked, counts, strict=True))
    for cost, n, count in zip(costs, asked, counts, strict=True):
        if n < count:  # no room for one more when its turn came: the others had asked at most one more than it
            before = sum(c * min(m, n + 1) for c, m in zip(costs, asked, strict=True))
            assert before + cost > limit


@given(suites_, st.integers(0, 2000), st.integers(0, 200))
def test_prefix(suites: list[tuple[int, int]], limit: int, more: int) -> None:
    """Of suites of one price; of several, a larger limit may ask one more of the dear and one less of the cheap."""
    counts = [count for _, count in suites]
    costs = [suites[0][0]] * len(suites)
    smaller, larger = admitted(costs, counts, limit), admitted(costs, counts, limit + more)
    assert all(a <= b for a, b in zip(smaller, larger, strict=True))


def test_no_limit_asks_everything() -> None:
    assert admitted([3, 4], [5, 6], None) == [5, 6]
    assert admitted([3, 4], [5, 6], 3 * 5 + 4 * 6) == [5, 6]
    assert admitted([3, 4], [5, 6], 3 * 5 + 4 * 6 - 1) == [5, 5]


def test_settings_of_a_suite_win() -> None:
    own, one, two = made({"held-out": 4, "one": 3, "two": 2}, samples=2, budgets=[8, 16], temperature=0.5, top_p=0.9,
                         one={"samples": 7, "budgets": [32], "temperature": 1.0, "top_p": 0.8})
    assert (own.name, len(own.prompts), own.samples, own.budgets, own.temperature, own.top_p) == (
        "held-out", 4, 2, (8, 16), 0.5, 0.9)
    assert (one.samples, one.budgets, one.temperature, one.top_p) == (7, (32,), 1.0, 0.8)
    assert (two.samples, two.budgets, two.temperature, two.top_p) == (2, (8, 16), 0.5, 0.9)


def test_greedy_decoding_asks_once() -> None:
    own, one = made({"held-out": 4, "one": 3}, samples=8, temperature=0.0, one={"temperature": 0.6})
    assert (own.samples, one.samples) == (1, 8)
    own, one = made({"held-out": 4, "one": 3}, samples=8, temperature=0.6, one={"temperature": 0.0})
    assert (own.samples, one.samples) == (8, 1)


def test_what_is_left_out_is_said() -> None:
    own, one = made({"held-out": 4, "one": 3}, samples=2, budgets=[8, 16], max_tokens=5 * 32)
    assert (len(own.prompts), own.left_out, len(one.prompts), one.left_out) == (3, 1, 2, 1)
    assert own.sentence() == "; evaluation.max_tokens leaves out 1 of 4"
    assert [prompt.id for prompt in own.prompts] == ["0", "1", "2"]
    assert made({"held-out": 4})[0].sentence() == ""


def test_no_room_for_one_question_of_each_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"max_tokens=63.*one question of each suite may take 64"):
        made({"held-out": 4, "one": 3}, samples=2, budgets=[16], max_tokens=63)
    found = made({"held-out": 4, "one": 3}, samples=2, budgets=[16], max_tokens=64)
    assert [len(suite.prompts) for suite in found] == [1, 1]
