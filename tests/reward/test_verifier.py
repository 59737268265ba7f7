"""Scoring at the cap and at every smaller budget. Oracle: judge every clip on its own."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from siri_megatron.data.digit_tokenizer import EOS_ID, encode
from siri_megatron.data.prompts import Prompt
from siri_megatron.reward.cap_rule import clip
from siri_megatron.reward.exact import ExactVerifier
from siri_megatron.reward.verifier import Outcome, outcome_of, score, verify

PROMPT = Prompt("p", "a1b2|", (30, 1), "3", "k=2")


class Codec:
    """Decodes digit-sum ids without a tokenizer directory."""

    stop_ids = (EOS_ID,)

    def decode(self, ids: Sequence[int], skip_special: bool = True) -> str:
        from siri_megatron.data.digit_tokenizer import VOCABULARY

        return "".join(VOCABULARY[token] for token in ids if token < 29)


class Scripted:
    """Right for texts that end in 3, half right for 5, no verdict for 4; counts its judgements."""

    def __init__(self) -> None:
        self.judged: list[str] = []

    def answer_text(self, response_ids: Sequence[int]) -> str | None:
        text = "".join(map(str, response_ids))
        return text.rstrip("0") or None

    async def judge(self, prompt: Prompt, answer_text: str) -> float:
        self.judged.append(answer_text)
        return {"3": 1.0, "4": math.nan, "5": 0.5}.get(answer_text[-1], 0.0)

    async def close(self) -> None: ...


@given(st.lists(st.integers(0, 9), max_size=12), st.integers(1, 14), st.sets(st.integers(1, 14), max_size=5))
def test_reward_is_of_the_clip(ids: list[int], cap: int, grid: set[int]) -> None:
    verifier = Scripted()
    scored = asyncio.run(score(verifier, PROMPT, ids, cap, sorted(grid), (9,)))
    judged = list(verifier.judged)
    for budget in grid:
        expected = asyncio.run(verify(Scripted(), PROMPT, clip(ids, min(budget, cap))))
        assert outcome_of(scored.budgets[budget]) == expected
    assert scored.outcome == asyncio.run(verify(Scripted(), PROMPT, clip(ids, cap)))
    assert scored.truncated == (9 not in ids[:cap])
    assert len(judged) == len(set(judged))  # one_judgement_a_text


def response(text: str) -> list[int]:
    stop = [EOS_ID] if text.endswith("$") else []
    return encode(text.rstrip("$")) + stop


@pytest.mark.parametrize(("text", "expected"), [
    ("b1+2=3A3$", "right"), ("A3$", "right"), ("A4$", "wrong"), ("b1+2=3A3", "wrong"), ("A3A4$", "wrong"),
    ("A4RA3$", "right"), ("A33$", "wrong"), ("A$", "wrong"), ("$", "wrong"), ("", "wrong"), ("3$", "wrong"),
])
def test_exact(text: str, expected: Outcome) -> None:
    assert asyncio.run(verify(ExactVerifier(Codec()), PROMPT, response(text))) == expected  # type: ignore[arg-type]


def test_exact_needs_its_stop_token_within_the_budget() -> None:
    ids = response("b1+2=3A3$")
    scored = asyncio.run(score(ExactVerifier(Codec()), PROMPT, ids, 128, (8, 9, 10), (EOS_ID,)))  # type: ignore[arg-type]
    assert scored.budgets == {8: 0.0, 9: 1.0, 10: 1.0}
    assert (scored.outcome, scored.reward, scored.truncated) == ("right", 1.0, False)


@pytest.mark.parametrize(("reward", "expected"), [
    (1.0, "right"), (0.0, "wrong"), (0.5, "partial"), (1e-9, "partial"), (math.nan, "failed")])
def test_outcome_of_reward(reward: float, expected: Outcome) -> None:
    assert outcome_of(reward) == expected


def test_failure_is_no_verdict() -> None:
    scored = asyncio.run(score(Scripted(), PROMPT, [3, 4], 8, (1, 2), (9,)))
    assert scored.outcome == "failed"
    assert math.isnan(scored.reward)
    assert scored.budgets[1] == 1.0
    assert math.isnan(scored.budgets[2])
