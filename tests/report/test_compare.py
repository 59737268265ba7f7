"""Differences and their intervals, against every resample written out."""

from __future__ import annotations

import math
from itertools import product
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from report_runs import evaluation

from siri_megatron.report import compare
from siri_megatron.report.compare import arms, bootstrap, by_question, by_seed, settings_apart
from siri_megatron.report.read import RunData

VALUES = st.lists(st.floats(-10, 10), min_size=5, max_size=30)


def run(name: str, *evaluations, **config) -> RunData:
    return RunData(name, Path(name), config={"name": name, **config}, evaluations=list(evaluations))


def test_interval_is_that_of_all_resamples():
    """Six pairs have 6^6 resamples: each is written out."""
    values = [0.0, 1.0, 1.0, -1.0, 2.0, 0.5]
    means = sorted(sum(resample) / 6 for resample in product(values, repeat=6))
    low, high = means[int(0.025 * len(means))], means[int(0.975 * len(means))]
    found = bootstrap(values, "questions")
    assert math.isclose(found.value, sum(values) / 6)
    assert abs(found.low - low) < 0.09  # one more or less of the coarse grid of means
    assert abs(found.high - high) < 0.09


def test_pairs_matter():
    """Negative control: resampled apart, what the two runs share would widen the interval ten times."""
    generator = np.random.default_rng(0)
    shared = generator.normal(0, 10, 200)
    one, other = shared, shared + 1 + generator.normal(0, 0.5, 200)
    paired = bootstrap(list(other - one), "questions")
    apart = np.std([generator.choice(other, 200).mean() - generator.choice(one, 200).mean() for _ in range(500)])
    assert paired.low > 0.8
    assert paired.high < 1.2
    assert 3.92 * apart > 10 * (paired.high - paired.low)


def test_coverage():
    """Of 200 experiments with a true difference of 0.3 the interval holds it in about 95%."""
    generator = np.random.default_rng(1)
    held = 0
    for number in range(200):
        found = bootstrap(list(generator.normal(0.3, 1, 60)), "questions", seed=number)
        held += found.low <= 0.3 <= found.high
    assert 0.89 <= held / 200 <= 0.99


@given(VALUES)
def test_inside(values):
    found = bootstrap(values, "questions")
    assert found.low <= found.value <= found.high


def test_deterministic_also_in_pieces(monkeypatch):
    values = list(np.random.default_rng(2).normal(size=100))
    assert bootstrap(values, "questions") == bootstrap(values, "questions")
    whole = bootstrap(values, "questions")
    monkeypatch.setattr(compare, "CHUNK", 10_000_000)
    in_one = bootstrap(values, "questions")
    assert abs(whole.low - in_one.low) < 0.02


def test_same_is_zero():
    one = evaluation("start", 0.5, 100)
    found = by_question(one, one, "accuracy")
    assert (found.value, found.low, found.high, found.pairs) == (0.0, 0.0, 0.0, 200)


def test_paired_only():
    one, other = evaluation("start", 0.5, 100), evaluation("start", 0.7, 80, seed=1)
    assert by_question(one, other, "tokens").value < 0
    other["questions"]["fingerprint"] = "of other questions"
    assert by_question(one, other, "accuracy") is None
    assert by_question({}, one, "accuracy") is None


def test_questions_without_a_verdict_do_not_count():
    one, other = evaluation("start", 0.5, 100), evaluation("start", 0.7, 80, seed=1)
    one["questions"]["accuracy"][:150] = [None] * 150
    assert by_question(one, other, "accuracy").pairs == 50


def test_few_pairs_have_no_interval():
    assert bootstrap([1.0, 2.0], "seeds").low is None
    assert bootstrap([1.0, 2.0], "seeds").value == 1.5
    assert bootstrap([], "seeds") is None


def test_arms_differ_in_seed_alone():
    runs = [run("a", seed=1, budget={"l_min": 1}), run("b", seed=2, budget={"l_min": 1}),
            run("c", seed=1, budget={"l_min": 2}), run("d"), RunData("e", Path("e")), RunData("f", Path("f"))]
    assert {name: [one.name for one in members] for name, members in arms(runs).items()} == {
        "a": ["a", "b"], "c": ["c"], "d": ["d"], "e": ["e"], "f": ["f"]}


def last(accuracy: float) -> dict:
    return evaluation("x", 0.5, 1) | {"accuracy": accuracy}


def test_by_seed_pairs_the_seeds_that_both_have():
    first = [run(f"a{seed}", last(0.1 * seed), seed=seed) for seed in range(6)]
    second = [run(f"b{seed}", last(0.1 * seed + 0.05), seed=seed) for seed in range(1, 9)]
    found = by_seed(first, second, "accuracy")
    assert found.pairs == 5
    assert math.isclose(found.value, 0.05)
    assert found.high - found.low < 1e-9
    assert by_seed(first, [run("c", seed=1)], "accuracy") is None


def test_settings_apart():
    one, other = run("a", x=1, y={"z": 2, "w": [1]}), run("b", x=1, y={"z": 3, "w": [1]}, new=True)
    assert settings_apart([one, other]) == {"y.z": [2, 3], "new": [None, True]}


@pytest.mark.parametrize("count", [5, 1000, 100_000])
def test_many_questions_take_little_memory(count, monkeypatch):
    monkeypatch.setattr(compare, "RESAMPLES", 50)
    assert bootstrap([1.0] * count, "questions").high == 1.0
