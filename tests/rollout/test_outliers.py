"""The length rule DOT on finished groups: which tokens are left, and that they are judged again."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from siri_megatron.config import DotConfig
from siri_megatron.data.prompts import Prompt
from siri_megatron.reward.verifier import Scored, score
from siri_megatron.rollout.engine_api import Sample
from siri_megatron.rollout.outliers import cut_outliers, cut_sample

ANSWER, FILLER, STOP = 7, 1, 9
CAP, GRID = 400, (50, 100, 400)
PROMPT = Prompt("p", "text", (1, 2), "7", "")
CONFIG = DotConfig(std_multiplier=2)


class FirstAnswer:
    """Right as soon as ANSWER stands anywhere; like a verifier that needs no stop token. Counts its judgements."""

    def __init__(self, reward: float = 1.0) -> None:
        self.reward = reward
        self.judged = 0

    def answer_text(self, response_ids: Sequence[int]) -> str | None:
        return "7" if ANSWER in response_ids else None

    async def judge(self, prompt: Prompt, answer_text: str) -> float:
        self.judged += 1
        return self.reward

    async def close(self) -> None:
        """Nothing to release."""


def sample(length: int, answer_at: int | None = None) -> Sample:
    """A finished response whose answer is its last but one token, or stands at a place of its own."""
    ids = [FILLER] * length
    ids[length - 2 if answer_at is None else answer_at], ids[-1] = ANSWER, STOP
    half = length // 2
    spans = [{"version": "3", "start": 0, "end": half}, {"version": "4", "start": half, "end": length}]
    return Sample(ids, [-0.5 - at / 1000 for at in range(length)], "stop", spans)


def cut(samples: list[Sample], verifier: FirstAnswer, **before: Any) -> tuple[list[Sample], list[Scored]]:
    async def work() -> tuple[list[Sample], list[Scored]]:
        scored = [await score(FirstAnswer(), PROMPT, one.token_ids, CAP, GRID, (STOP,)) for one in samples]
        return await cut_outliers(verifier, PROMPT, samples, scored, CONFIG, cap=CAP, grid=GRID, stop_ids=(STOP,))

    return asyncio.run(work())


def test_prefix() -> None:
    """Eleven of 40 tokens and one of 300: mean 61.7, sample deviation 75.1, T = 211."""
    samples = [sample(40)] * 11 + [sample(300)]
    after, _ = cut(samples, FirstAnswer())
    assert after[:11] == samples[:11]
    assert after[11] == Sample(samples[11].token_ids[:211], samples[11].logprobs[:211], "cut", [
        {"version": "3", "start": 0, "end": 150}, {"version": "4", "start": 150, "end": 211}])


def test_a_cut_before_the_answer_is_wrong() -> None:
    """The outlier's answer stood behind T: no answer any more, and nobody is asked about it."""
    verifier = FirstAnswer()
    _, scored = cut([sample(40)] * 11 + [sample(300)], verifier)
    assert [one.reward for one in scored] == [1.0] * 11 + [0.0]
    assert (scored[11].outcome, list(scored[11].budgets.values()), verifier.judged) == ("wrong", [0.0] * 3, 0)


def test_a_cut_behind_the_answer_stays_right() -> None:
    """It had said the answer after 80 tokens: still right, and at every budget from there on."""
    verifier = FirstAnswer()
    _, scored = cut([sample(40)] * 11 + [sample(300, answer_at=80)], verifier)
    assert scored[11] == Scored(1.0, {50: 0.0, 100: 1.0, 400: 1.0}, truncated=False)
    assert verifier.judged == 1


def test_a_verifier_that_fails_on_the_cut_text_gives_no_verdict() -> None:
    _, scored = cut([sample(40)] * 11 + [sample(300, answer_at=80)], FirstAnswer(math.nan))
    assert math.isnan(scored[11].reward)


def test_ended_within_its_cap() -> None:
    """What DOT cut is not what the cap cut, though it has no stop token."""
    after, scored = cut([sample(40)] * 11 + [sample(300)], FirstAnswer())
    assert STOP not in after[11].token_ids
    assert not scored[11].truncated


@pytest.mark.parametrize("lengths", [[40] * 12, [40] * 11 + [60], [40, 300]])
def test_negative_control_nothing_is_cut_without_an_outlier(lengths: list[int]) -> None:
    samples = [sample(length) for length in lengths]
    after, scored = cut(samples, FirstAnswer(math.nan))
    assert after == samples
    assert [one.reward for one in scored] == [1.0] * len(lengths)


def test_one_wrong_answer_spares_the_group() -> None:
    wrong = Sample([FILLER] * 39 + [STOP], [-1.0] * 40, "stop", [{"version": "3", "start": 0, "end": 40}])
    samples = [sample(40)] * 10 + [wrong, sample(300)]
    assert cut(samples, FirstAnswer())[0] == samples


@given(st.integers(4, 60), st.data())
def test_cut_sample(length: int, data: st.DataObject) -> None:
    whole, at = sample(length), data.draw(st.integers(1, length))
    short = cut_sample(whole, at)
    assert (short.token_ids, short.logprobs) == (whole.token_ids[:at], whole.logprobs[:at])
    forced = sorted(data.draw(st.lists(st.integers(0, length), min_size=2, max_size=2)))
    marked = cut_sample(replace(whole, forced=tuple(forced)), at)
    assert list(range(*marked.forced)) == [token for token in range(*forced) if token < at]
    versions = [span["version"] for span in short.spans for _ in range(span["start"], span["end"])]
    assert versions == ["3" if token < length // 2 else "4" for token in range(at)]
