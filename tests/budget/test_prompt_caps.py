from __future__ import annotations

import json
import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from budget_configs import config
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from siri_megatron.budget import prompt_caps
from siri_megatron.budget.prompt_caps import PromptCaps, check_caps, solve_rates
from siri_megatron.budget.step_budget import StepBudget
from siri_megatron.errors import DataError

NAN = math.nan
rules = st.sampled_from(["da_dler", "laser_d"])
steps_of_groups = st.lists(st.dictionaries(st.sampled_from("abcdefgh"), st.lists(st.sampled_from([0.0, 0.5, 1.0, NAN]),
                                           min_size=1, max_size=6), max_size=5), max_size=8)


@dataclass
class Rows:
    """Columns of a ledger step."""

    prompt_id: Any
    reward: Any
    cap: Any = ()


def step_of(groups, cap=64):
    prompts = [prompt for prompt, rewards in groups.items() for _ in rewards]
    rewards = [reward for rewards in groups.values() for reward in rewards]
    return Rows(np.array(prompts, object), np.array(rewards, np.float32), np.full(len(prompts), cap, np.int32))


def caps_of(rule="da_dler", *, l_min=8, l_max=4096, **keys):
    return PromptCaps(config(l_min=l_min, l_max=l_max, prompt_caps={"rule": rule, **keys}))


def heard(caps, *steps):
    for groups in steps:
        caps.observe(step_of(groups))
    return caps


def test_the_papers_numbers():
    """DA-DLER: 2,000 tokens for prompts that are right in half of the cases or more, 4,000 for the others."""
    caps = heard(caps_of(), {"half": [1, 0], "solved": [1, 1], "hard": [1, 0, 0], "hopeless": [0, 0]})
    assert caps.below(4000) == {"half": 2000, "solved": 2000}


def test_laser_d_by_hand():
    caps = heard(caps_of("laser_d"), {"a": [1, 1, 0], "b": [1, 0, 0], "c": [1, 0, 0, 0]})
    assert caps.below(100) == {"a": 50, "b": 75}
    other = heard(caps_of("laser_d", shares=(0.25, 0.9)), {"a": [1, 1, 0], "b": [1, 0, 0], "c": [1, 0, 0, 0]})
    assert other.below(100) == {"a": 25, "b": 90}


def test_floor_by_hand():
    """Half of 100 is below l_min = 60; a floor that is named goes before it; a step below the floor keeps its cap."""
    solved = {"a": [1, 1]}
    assert heard(caps_of(l_min=60), solved).below(100) == {"a": 60}
    assert heard(caps_of(l_min=60, floor=20), solved).below(100) == {"a": 50}
    assert heard(caps_of(l_min=60, floor=80), solved).below(70) == {}


def test_memory_by_hand():
    """1, then 0 with a memory of 0.6: 0.6, still easy; then 0.36, no longer. Without memory it is hard at once."""
    steps = [{"a": [1, 1]}, {"a": [0, 0]}, {"a": [0, 0]}]
    assert [bool(heard(caps_of(memory=0.6), *steps[:n]).below(64)) for n in (1, 2, 3)] == [True, True, False]
    assert [bool(heard(caps_of(), *steps[:n]).below(64)) for n in (1, 2, 3)] == [True, False, False]


def test_the_newest_rate_counts():
    caps = heard(caps_of(), {"a": [0, 0]}, {"a": [1, 1]})
    assert caps.below(64) == {"a": 32}


def cap_at(caps, rate, cap):
    """The cap of a prompt with this solve rate in a step with this cap."""
    caps.restore({"rates": {"a": rate}})
    return caps.below(cap).get("a", cap)


@given(steps_of_groups, rules, st.integers(4, 300))
def test_within_the_step(steps, rule, cap):
    caps = heard(caps_of(rule, l_min=20), *steps)
    for own in caps.below(cap).values():
        assert 20 <= own < cap
    for tenth in range(11):
        assert min(20, cap) <= cap_at(caps, tenth / 10, cap) <= cap


@given(steps_of_groups, rules, st.integers(4, 300))
def test_unknown_gets_all(steps, rule, cap):
    seen = {prompt for groups in steps for prompt, rewards in groups.items() if not all(map(math.isnan, rewards))}
    assert set(heard(caps_of(rule), *steps).below(cap)) <= seen


@given(st.floats(0, 1), st.floats(0, 1), rules, st.integers(4, 3000))
def test_easier_is_never_longer(one, other, rule, cap):
    caps, (hard, easy) = caps_of(rule), sorted((one, other))
    assert cap_at(caps, easy, cap) <= cap_at(caps, hard, cap)


@given(st.floats(0, 1), rules, st.integers(4, 3000), st.integers(4, 3000))
def test_follows_the_step(rate, rule, one, other):
    caps, (low, high) = caps_of(rule), sorted((one, other))
    assert cap_at(caps, rate, low) <= cap_at(caps, rate, high)


@given(steps_of_groups)
def test_failures_teach_nothing(steps):
    """Every rate as a loop counts it; a group of failures leaves the former one."""
    expected: dict[str, float] = {}
    for groups in steps:
        for prompt, rewards in groups.items():
            judged = [reward for reward in rewards if not math.isnan(reward)]
            if judged:
                expected[prompt] = judged.count(1.0) / len(judged)
    found = heard(caps_of(), *steps).state()["rates"]
    assert found == pytest.approx(expected, abs=1e-4)


def test_a_prompt_twice_in_a_step_has_one_rate():
    rows = Rows(np.array(["b", "b", "a", "a", "b", "b"], object), np.array([1, 1, 0.5, NAN, 0, 1], np.float32))
    assert solve_rates(rows) == {"b": 0.75, "a": 0.0}
    assert list(solve_rates(rows)) == ["b", "a"]


def test_bounded(monkeypatch):
    monkeypatch.setattr(prompt_caps, "LIMIT", 3)
    caps = heard(caps_of(), {"a": [1], "b": [1], "c": [1]}, {"a": [1]}, {"d": [1], "e": [1]})
    assert list(caps.state()["rates"]) == ["a", "d", "e"]  # b and c were not seen for longest


def test_the_record_stays_small():
    """40,000 prompts: about a megabyte in the commit record."""
    caps = caps_of(memory=0.9)
    for first in range(0, 40000, 2000):
        heard(caps, {f"prompt-{number}": [1, 0, 0] for number in range(first, first + 2000)})
    assert len(caps.below(64)) == 0
    assert len(json.dumps(caps.state())) < 1.1e6


@given(steps_of_groups, st.data(), rules, st.sampled_from([0.0, 0.5, 0.9]))
def test_state_round_trip(steps, data, rule, memory):
    stop = data.draw(st.integers(0, len(steps)))
    whole, first, then = (caps_of(rule, memory=memory) for _ in range(3))
    heard(first, *steps[:stop])
    then.restore(json.loads(json.dumps(first.state())))
    heard(then, *steps[stop:])
    heard(whole, *steps)
    assert then.below(64) == whole.below(64)
    assert then.state() == whole.state()
    assert list(then.state()["rates"]) == list(whole.state()["rates"])


def test_negative_control_a_forgotten_state_shows():
    assert heard(caps_of(), {"a": [1]}).below(64) != heard(caps_of()).below(64)


def test_rule_none_remembers_nothing():
    caps = heard(PromptCaps(config()), {"a": [1, 1]})
    assert (caps.below(64), caps.state()) == ({}, {"rates": {}})


def test_check_caps():
    budget, caps = StepBudget(3, 0, "compression", 64, 1), {"a": 32}
    rows = Rows(np.array(["a", "b"], object), np.array([1, 1]), np.array([32, 64]))
    check_caps(rows, budget, caps)
    check_caps(rows, budget, {**caps, "of another step": 12})
    for wrong in ({}, {"a": 33}, {"a": 32, "b": 48}):
        with pytest.raises(DataError, match=r"prompt [ab] of ledger step 3 was admitted with cap \d+, asked for is"):
            check_caps(rows, budget, wrong)


@pytest.mark.parametrize(("keys", "words"), [
    ({"memory": 0.5}, r"prompt_caps=\{'memory': 0\.5\} with rule=none"),
    ({"rule": "da_dler", "shares": (0.5, 0.7)}, r"shares=\[0\.5, 0\.7\] with rule=da_dler: it takes 1"),
    ({"rule": "laser_d", "shares": (0.7, 0.5)}, r"shares=\[0\.7, 0\.5\] with rule=laser_d.*lowest"),
    ({"rule": "da_dler", "floor": 500}, r"prompt_caps\.floor=500 is above l_max=128")])
def test_what_is_refused(keys, words):
    with pytest.raises(ValidationError, match=words):
        config(prompt_caps=keys)


@given(steps_of_groups, st.integers(0, 4), st.sampled_from([0.0, 0.5]))
def test_decided_by_what_was_heard(steps, lag, memory):
    """At any distance, also after a resume, a step's caps are those of who heard the steps before s - lag only."""
    def caps(lag=0):
        return PromptCaps(config(l_min=8, l_max=4096, prompt_caps={"rule": "da_dler", "memory": memory}), lag)

    ahead_of = caps(lag)
    for heard_steps in range(len(steps) + 1):
        for ahead in range(lag + 1):
            knows = heard(caps(), *steps[:max(0, heard_steps + ahead - lag)])
            assert ahead_of.below(64, ahead) == knows.below(64)
        resumed = caps(lag)
        resumed.restore(json.loads(json.dumps(ahead_of.state())))
        assert [resumed.below(64, ahead) for ahead in range(lag + 1)] == [
            ahead_of.below(64, ahead) for ahead in range(lag + 1)]
        heard(ahead_of, *steps[heard_steps:heard_steps + 1])
