"""What holds for every length rule, whatever it does; what each does stands in its own test."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rule_rows import NAN, budget, rows_of, tables

from siri_megatron.config import load
from siri_megatron.errors import ConfigError
from siri_megatron.reward.length_rule import RuleRows
from siri_megatron.reward.rules import LENGTH_RULES, length_rule_of

TINY = Path(__file__).resolve().parents[2] / "configs" / "tiny.yaml"
KEYS = {"dot": ["reward.dot.std_multiplier=2"], "leash": ["reward.leash.target_share=0.25"],
        "laser_d": ["reward.laser_d.every_steps=2"]}
RULES = sorted(LENGTH_RULES)
MOVING = ("laser_d", "leash", "prorl")
FIXED = ("none", "dler", "dot")
"""These change no reward: none does nothing, dler is the cap rule and `algorithm`, dot has cut the rows already."""


def config_of(name, *further):
    return load(TINY, [f"reward.length_rule={name}", *KEYS.get(name, []), *further])


def rule_of(name):
    return length_rule_of(CONFIGS[name])


CONFIGS = {name: config_of(name) for name in RULES}


def shaped(rule, rows, step=0):
    return rule.shape(rows, rows.verdict, budget(step))


def picked(rows, order):
    return RuleRows(rows.length[order], rows.cap[order], rows.group[order], rows.verdict[order])


def test_the_table_has_a_rule_for_every_name_of_the_config():
    from typing import get_args

    from siri_megatron.config.rules import RuleName

    assert set(LENGTH_RULES) == set(get_args(RuleName)) == {*MOVING, *FIXED}


@pytest.mark.parametrize("name", RULES)
@given(tables)
def test_no_verdict_no_reward(name, table):
    rows = rows_of(table)
    assert (np.isnan(shaped(rule_of(name), rows)) == np.isnan(rows.verdict)).all()


@pytest.mark.parametrize("name", MOVING)
@given(st.lists(tables, min_size=1, max_size=4), st.randoms(use_true_random=False))
def test_order_free(name, steps, random):
    """Also after a state has been gathered from rows in another order."""
    one, other = rule_of(name), rule_of(name)
    for step, table in enumerate(steps):
        rows = rows_of(table)
        order = np.array(random.sample(range(len(rows)), len(rows)), np.int64)
        mixed = picked(rows, order)
        expected = shaped(one, rows, step)[order].tolist()
        assert shaped(other, mixed, step).tolist() == pytest.approx(expected, nan_ok=True)
        one.observe(rows)
        other.observe(mixed)


@pytest.mark.parametrize("name", MOVING)
@given(st.lists(tables, min_size=2, max_size=6), st.data())
def test_state_round_trip(name, steps, data):
    """Stopped after any step, restored from JSON: rewards and figures are those of a rule that went on."""
    stop = data.draw(st.integers(1, len(steps) - 1))
    whole, first, then = rule_of(name), rule_of(name), rule_of(name)
    for step, table in enumerate(steps):
        rows, resumed = rows_of(table), first if step < stop else then
        assert resumed.figures() == whole.figures()
        np.testing.assert_array_equal(shaped(resumed, rows, step), shaped(whole, rows, step))
        whole.observe(rows)
        resumed.observe(rows)
        if step + 1 == stop:
            then.restore(json.loads(json.dumps(first.state())))
    assert then.state() == whole.state()


@pytest.mark.parametrize("name", ["laser_d", "leash"])
def test_negative_control_a_forgotten_state_shows(name):
    """Were the state not restored, the test above would see it."""
    rows = rows_of([(60, 64, 0, 1.0), (8, 64, 0, 1.0), (64, 64, 1, 0.0), (64, 64, 1, 1.0)])
    rule = rule_of(name)
    for _ in range(2):
        rule.observe(rows)
    assert not np.array_equal(shaped(rule, rows), shaped(rule_of(name), rows))


@pytest.mark.parametrize("name", FIXED)
@given(tables)
def test_rules_that_change_no_reward(name, table):
    rows = rows_of(table)
    np.testing.assert_array_equal(shaped(rule_of(name), rows), rows.verdict)


@pytest.mark.parametrize("name", MOVING)
def test_the_given_reward_is_what_is_shaped(name):
    """What overlong handling made of a verdict comes in as the reward; the verdict still says what was right."""
    rows = rows_of([(60, 64, 0, 1.0), (8, 64, 0, 1.0), (64, 64, 0, 0.0)])
    rule, lowered = rule_of(name), rows.verdict - 0.25
    np.testing.assert_allclose(rule.shape(rows, lowered, budget()), shaped(rule, rows) - 0.25)
    np.testing.assert_array_equal(rows.verdict, [1, 1, 0])


@pytest.mark.parametrize("name", ["prorl", "leash"])
@given(tables)
def test_longer_is_never_better(name, table):
    """Of two responses with the same cap and verdict the longer one has no higher reward."""
    rows = rows_of(table)
    reward = shaped(rule_of(name), rows)
    for a in range(len(rows)):
        for b in range(len(rows)):
            alike = (rows.cap[a], rows.verdict[a]) == (rows.cap[b], rows.verdict[b])
            assert not (alike and rows.length[a] <= rows.length[b]) or reward[a] >= reward[b]


def test_dler_is_one_line():
    """Truncation is the cap rule; the rest of the recipe is filled in, and survives being resolved and read again."""
    config = config_of("dler")
    algorithm = config.algorithm
    assert (algorithm.advantage, algorithm.clip_low, algorithm.clip_high, algorithm.drop_uniform_groups) == (
        "batch_std", 0.2, 0.28, True)
    assert type(config).model_validate(config.model_dump()) == config
    assert config_of("none").algorithm.advantage == "group_std"


@pytest.mark.parametrize(("rule", "override", "named"), [
    ("dler", "algorithm.advantage=group_std", ["advantage=group_std", "advantage=batch_std"]),
    ("dler", "algorithm.clip_high=0.2", ["clip_high=0.2", "clip_high=0.28"]),
    ("dler", "algorithm.loss=gspo", ["loss=gspo", "dler"]),
    ("dler", "phases.expansion.clip_high=0.4", ["phases.expansion.clip_high=0.4", "clip_high=0.28"]),
    ("dler", "reward.overlong=mask", ["reward.overlong=mask", "overlong=zero"]),
    ("dler", "phases.compression.overlong=soft", ["phases.compression.overlong=soft", "overlong=zero"]),
    ("dot", "reward.dot.std_multiplier=3", ["std_multiplier=3", "samples_per_prompt=8", "2.47"]),
    ("leash", "reward.leash.target_tokens=30", ["target_tokens=30", "target_share=0.25"]),
    ("leash", "reward.leash.start=2", ["start=2", "highest=1"]),
    ("prorl", "reward.leash.target_share=0.5", ["leash", "length_rule=prorl"]),
    ("prorl", "reward.prorl.lowest=1", ["lowest=1", "highest=0"]),
    ("prorl", "{reward: {prorl: {on: expansion, on_steps: 7}}}", ["on_steps=7", "on=expansion"])])
def test_what_contradicts_is_refused(rule, override, named):
    overrides = [override]
    if override.startswith("{"):
        overrides = ["reward.prorl.on=expansion", "reward.prorl.on_steps=7"]
    with pytest.raises(ConfigError) as caught:
        config_of(rule, *overrides)
    for value in named:
        assert value in caught.value.what


def test_leash_needs_a_target():
    with pytest.raises(ConfigError, match="without a target"):
        load(TINY, ["reward.length_rule=leash"])


def test_empty_steps_are_fine():
    for name in RULES:
        rule, rows = rule_of(name), rows_of([])
        assert len(shaped(rule, rows)) == 0
        rule.observe(rows)


def test_a_group_without_verdict_teaches_no_rule_a_reward():
    rows = rows_of([(5, 64, 0, NAN), (64, 64, 0, NAN)])
    for name in RULES:
        assert np.isnan(shaped(rule_of(name), rows)).all()
