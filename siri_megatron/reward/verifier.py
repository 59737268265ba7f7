"""What a verifier is, and how a response is scored at its cap and at every smaller budget.

A verifier works in two parts: `answer_text` says, cheaply, which text of a (clipped) response decides, and `judge`
compares it with the reference, perhaps slowly. Budgets at which the deciding text is the same share one judgement.

Invariants of `score`:
    reward_is_of_the_clip: the reward at budget B is the reward of clip(y, B), whatever comes after.
    one_judgement_a_text: `judge` is called once for each distinct deciding text, never where there is none.
    failure_is_no_verdict: a failed judgement gives NaN, never 0 (the advantages leave such rows out).
    outcome_of_reward: `right` is 1, `wrong` 0, `failed` NaN, `partial` what lies between (custom rewards only).
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol

from siri_megatron.config import RewardConfig
from siri_megatron.reward.cap_rule import clip, truncated

if TYPE_CHECKING:
    from siri_megatron.data.codec import TextCodec
    from siri_megatron.data.prompts import Prompt

Outcome = Literal["right", "wrong", "partial", "failed"]


class Verifier(Protocol):
    """Decides whether a response answers a prompt."""

    def answer_text(self, response_ids: Sequence[int]) -> str | None:
        """The text that decides; None if the response holds no answer (then it is wrong)."""

    async def judge(self, prompt: Prompt, answer_text: str) -> float:
        """Reward in [0, 1] of the deciding text, given the prompt's reference; NaN: no verdict."""

    async def close(self) -> None:
        """Release processes, if there are any."""


@dataclass(frozen=True)
class Scored:
    """A response at its cap and at the budgets of the grid."""

    reward: float
    """In [0, 1] (of right and wrong answers 1 and 0), or NaN (no verdict)."""
    budgets: dict[int, float]
    """Reward of clip(y, B) for every B of the grid."""
    truncated: bool

    @property
    def outcome(self) -> Outcome:
        return outcome_of(self.reward)


def outcome_of(reward: float) -> Outcome:
    if math.isnan(reward):
        return "failed"
    return "right" if reward == 1 else "wrong" if reward == 0 else "partial"


def build_verifier(config: RewardConfig, codec: TextCodec) -> Verifier:
    """The verifier that the config names."""
    if config.verifier == "exact":
        from siri_megatron.reward.exact import ExactVerifier

        return ExactVerifier(codec)
    from siri_megatron.reward.workers import Limits

    limits = Limits(config.workers, config.timeout_s, int(config.memory_gib * 2**30))
    if config.custom is not None:
        from siri_megatron.reward.custom import CustomVerifier

        return CustomVerifier(codec, config.custom, limits)
    from siri_megatron.reward.math import MathVerifier

    return MathVerifier(codec, config.scope, limits)


async def verify(verifier: Verifier, prompt: Prompt, response_ids: Sequence[int]) -> Outcome:
    """Judge a whole response."""
    text = verifier.answer_text(response_ids)
    return "wrong" if text is None else outcome_of(await verifier.judge(prompt, text))


async def score(verifier: Verifier, prompt: Prompt, ids: Sequence[int], cap: int, grid: Collection[int],
                stop_ids: Collection[int]) -> Scored:
    """Reward at the cap and at every budget of the grid; a budget above the cap counts as the cap (siri.md 1.2)."""
    lengths = {min(budget, cap, len(ids)) for budget in (*grid, cap)}
    texts = {length: verifier.answer_text(clip(ids, length)) for length in lengths}
    distinct = sorted({text for text in texts.values() if text is not None})
    judged = await _judge_all(verifier, prompt, distinct)
    reward = {length: 0.0 if text is None else judged[text] for length, text in texts.items()}
    at = {budget: reward[min(budget, cap, len(ids))] for budget in (*grid, cap)}
    return Scored(at[cap], {budget: at[budget] for budget in grid}, truncated(ids, cap, stop_ids))


async def _judge_all(verifier: Verifier, prompt: Prompt, texts: Sequence[str]) -> dict[str, float]:
    if len(texts) == 1:  # the common case, without the cost of a task
        return {texts[0]: await verifier.judge(prompt, texts[0])}
    rewards = await asyncio.gather(*(verifier.judge(prompt, text) for text in texts))
    return dict(zip(texts, rewards, strict=True))
