"""The generated task: splits, tiers, determinism, grammar, and the teacher's stated error rates."""

from __future__ import annotations

import random
import re
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from siri_megatron.data.digit_sum import LABELS, Problem, as_dataset, extract_answer, held_out, make_problem, problems
from siri_megatron.data.digit_sum_teacher import PRESETS, respond
from siri_megatron.data.teaching import FORMS, Slips, Style, Teacher

OPERANDS = st.lists(st.integers(0, 9), min_size=2, max_size=12).map(tuple)
RESPONSE = re.compile(r"(?:[a-l]\d\+\d=\d|(?:[a-l]\d){1,2}=\d|(?:\?\d\+\d=\d)+|~\d|A\dR)*A\d")


def test_splits_are_disjoint() -> None:
    train, evaluation = ({p.prompt for p in problems(split, 3000, seed=seed)} for split, seed in
                         (("train", 1), ("eval", 2)))
    assert not train & evaluation
    assert all(held_out(p.operands) for p in problems("eval", 200))


def test_about_one_in_ten_is_held_out_in_every_tier() -> None:
    rng = random.Random(0)
    for terms in range(3, 13):
        drawn = [held_out(tuple(rng.randrange(10) for _ in range(terms))) for _ in range(4000)]
        assert 0.08 < sum(drawn) / len(drawn) < 0.12


def test_deterministic_and_prefix() -> None:
    assert problems("train", 300, seed=3) == problems("train", 300, seed=3)
    assert problems("train", 300, seed=3) == problems("train", 500, seed=3)[:300]
    assert problems("train", 300, seed=3) != problems("train", 300, seed=4)


def test_every_tier_is_present() -> None:
    counts = Counter(problem.tier for problem in problems("eval", 256))
    assert set(counts) == {f"k={k}" for k in range(3, 10)}
    assert max(counts.values()) - min(counts.values()) <= 1


def test_held_out_problems_do_not_repeat_at_the_default_size() -> None:
    assert len({problem.prompt for problem in problems("eval", 256)}) == 256
    assert len({problem.id for problem in problems("train", 5000)}) == 5000


@given(OPERANDS)
def test_prompt_and_answer(operands: tuple[int, ...]) -> None:
    problem = make_problem(operands, "x")
    assert problem.operands == operands
    assert re.fullmatch(r"(?:[a-l]\d)+\|", problem.prompt)
    assert problem.prompt[:-1:2] == LABELS[: len(operands)]
    assert (int(problem.answer) - sum(operands)) % 10 == 0


@pytest.mark.parametrize(("response", "answer"), [
    ("b8+3=1A1", "1"), ("A3Rb1=4A4", "4"), ("A7", "7"), ("b8+3=1", None), ("A", None), ("", None), ("A1~", None),
    ("A12", None), ("A1\n", None),
])
def test_extract_answer(response: str, answer: str | None) -> None:
    assert extract_answer(response) == answer


@given(OPERANDS, st.sampled_from(sorted(PRESETS)), st.integers(0, 1000))
def test_well_formed(operands: tuple[int, ...], preset: str, seed: int) -> None:
    response = respond(operands, PRESETS[preset], random.Random(seed))
    assert RESPONSE.fullmatch(response)
    assert response == respond(operands, PRESETS[preset], random.Random(seed))


@given(OPERANDS, st.integers(0, 1000), st.tuples(*[st.floats(0.1, 1)] * 3))
def test_a_teacher_without_slips_is_always_right(operands: tuple[int, ...], seed: int,
                                                 mix: tuple[float, float, float]) -> None:
    response = respond(operands, Teacher((Style(mix=mix, check=0.5, restart=0.3),)), random.Random(seed))
    assert extract_answer(response) == str(sum(operands) % 10)


@pytest.mark.parametrize("form", FORMS)
def test_slips_occur_at_the_stated_rate(form: str) -> None:
    """One unchecked step: the error rate is the slip's probability (3 sigma of 4000 draws is 0.022)."""
    teacher = Teacher((Style(mix=tuple(float(f == form) for f in FORMS)),), Slips(**{form: 0.3}))  # type: ignore[arg-type]
    operands = (3, 8, 9) if form == "skip" else (3, 8)
    rng = random.Random(7)
    wrong = sum(extract_answer(respond(operands, teacher, rng)) != str(sum(operands) % 10) for _ in range(4000))
    assert abs(wrong / 4000 - 0.3) < 0.022


@pytest.mark.parametrize(("preset", "right", "tokens", "easy", "hard"), [
    ("clean", 1.0, 58, 1.0, 1.0), ("noisy", 0.57, 66, 0.78, 0.43)])
def test_presets_are_right_and_long_as_stated(preset: str, right: float, tokens: float, easy: float,
                                              hard: float) -> None:
    """The table of the teacher's docstring; a tier has 1000 draws, three sigma of a rate are at most 0.048."""
    drawn = problems("train", 7000)
    assert _measure(drawn, preset) == pytest.approx((right, tokens), rel=0.03)
    assert _measure([p for p in drawn if p.tier == "k=3"], preset)[0] == pytest.approx(easy, abs=0.05)
    assert _measure([p for p in drawn if p.tier == "k=9"], preset)[0] == pytest.approx(hard, abs=0.05)


def _measure(drawn: list[Problem], preset: str) -> tuple[float, float]:
    """(accuracy, mean tokens with the end token) of a preset."""
    rng = random.Random(1)
    responses = [respond(problem.operands, PRESETS[preset], rng) for problem in drawn]
    right = [extract_answer(text) == problem.answer for text, problem in zip(responses, drawn, strict=True)]
    return sum(right) / len(right), sum(map(len, responses)) / len(responses) + 1


def test_as_dataset() -> None:
    dataset = as_dataset(train=20, evaluation=10)
    assert set(dataset) == {"train", "eval"}
    assert dataset["eval"][0] == vars(problems("eval", 1)[0])
