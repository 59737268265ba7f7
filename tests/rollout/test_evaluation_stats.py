"""Evaluation statistics. Oracles: published Wilson values, numpy, counting by hand."""

from __future__ import annotations

import math
from itertools import combinations
from statistics import NormalDist

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from siri_megatron.rollout.evaluation_stats import (
    EvalSample,
    by_question,
    evaluation_report,
    mean_interval,
    pass_at,
    wilson,
)


def test_wilson_against_published_values() -> None:
    """Newcombe 1998 (Statistics in Medicine 17), table I: 81/263, 15/148, 0/20, 1/29."""
    for k, n, low, high in ((81, 263, .2553, .3662), (15, 148, .0624, .1605), (0, 20, 0, .1611), (1, 29, .0061, .1718)):
        assert wilson(k / n, n) == pytest.approx((low, high), abs=5e-5)


@given(st.floats(0, 1), st.integers(1, 1000))
def test_inside_and_honest_ends(share: float, n: int) -> None:
    low, high = wilson(share, n)
    assert 0 <= low <= share <= high <= 1
    assert high - low > 0


@given(st.lists(st.lists(st.floats(0, 100), min_size=3, max_size=3), min_size=2, max_size=9))
def test_mean_interval_against_numpy(groups: list[list[float]]) -> None:
    mean, interval = mean_interval(groups)
    means = np.array(groups).mean(axis=1)
    half = NormalDist().inv_cdf(0.975) * means.std(ddof=1) / math.sqrt(len(groups))
    assert mean == pytest.approx(np.mean(groups))
    assert interval == pytest.approx([mean - half, mean + half], rel=1e-9, abs=1e-9)


@given(st.lists(st.lists(st.sampled_from([0.0, 1.0]), max_size=6), max_size=4))
def test_pass_at_against_every_choice_of_k_answers(verdicts: list[list[float]]) -> None:
    found = pass_at(verdicts)
    most = max(map(len, verdicts), default=0)
    assert set(found) == {str(k) for k in (1, 2, 4, most) if 0 < k <= most}
    for k, chance in found.items():
        choices = [list(combinations(group, int(k))) for group in verdicts if len(group) >= int(k)]
        assert chance == pytest.approx(np.mean([np.mean([any(choice) for choice in group]) for group in choices]))


def sample(problem: int, tier: str, tokens: int, small: float, large: float, cut: bool = False) -> EvalSample:
    return EvalSample(problem, tier, tokens, cut, {8: small, 16: large})


def test_report_by_hand() -> None:
    samples = [sample(0, "k=3", 4, 1, 1), sample(0, "k=3", 10, 0, 1), sample(1, "k=4", 16, 0, 0, cut=True),
               sample(1, "k=4", 6, 0, math.nan)]
    report = evaluation_report(samples, [16, 8])
    assert report["accuracy"] == 2 / 3  # no_verdict_no_vote
    assert report["accuracy_ci"] == list(wilson(2 / 3, 2))
    assert {budget: entry["accuracy"] for budget, entry in report["budgets"].items()} == {"8": 1 / 4, "16": 2 / 3}
    assert (report["mean_tokens"], report["truncated"], report["tokens"]) == (9.0, 0.25, 36)
    assert report["failed_verifications"] == 1
    assert report["problems"] == 2
    assert {tier: entry["accuracy"] for tier, entry in report["tiers"].items()} == {"k=3": 1.0, "k=4": 0.0}
    assert report["tiers"]["k=4"]["mean_tokens"] == 11.0
    assert report["tiers"]["k=4"]["mean_tokens_ci"] is None


def test_no_verdict_at_all() -> None:
    report = evaluation_report([sample(0, "", 3, math.nan, math.nan)], [8, 16])
    assert report["accuracy"] is None
    assert report["budgets"]["8"] == {"accuracy": None, "ci": None}


def test_by_question_in_the_order_of_the_questions() -> None:
    """Two questions with a verdict, one without; their mean is that of the report: all have two answers."""
    samples = [EvalSample(place, "t", tokens, False, {8: 0.0, 16: reward}) for place, tokens, reward in (
        (2, 10, 1.0), (2, 20, 0.0), (0, 4, 1.0), (0, 6, math.nan), (1, 5, math.nan), (1, 5, math.nan))]
    samples.sort(key=lambda sample: sample.problem)
    found = by_question(samples, 16)
    assert found == {"accuracy": [1.0, None, 0.5], "tokens": [5.0, 5.0, 15.0]}
    assert sum(found["tokens"]) / 3 == evaluation_report(samples, [8, 16])["mean_tokens"]
