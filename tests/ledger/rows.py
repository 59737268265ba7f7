"""Ledger rows for tests: hypothesis strategies and a small deterministic step."""

from __future__ import annotations

import numpy as np
from hypothesis import strategies as st

from siri_megatron.budget.step_budget import StepBudget
from siri_megatron.ledger.schema import Rollout

STAMP = StepBudget(step=7, cycle=0, phase="compression", cap=24, version=3)
IDENTITY = "0123456789abcdef"


def rollout(group: int, sample: int, *, length: int = 5, stamp: StepBudget = STAMP, reward: float = 1.0) -> Rollout:
    rng = np.random.default_rng([group, sample])
    return Rollout(
        step=stamp.step, phase=stamp.phase, cap=stamp.cap, cap_version=stamp.version, group=group, sample=sample,
        prompt_id=f"p{group}", tier="k=3", answer="A7", prompt_ids=rng.integers(0, 99, 4).tolist(),
        response_ids=rng.integers(0, 99, length).tolist(), logprobs=rng.normal(size=length).astype("f4").tolist(),
        finish_reason="stop", truncated=False, outcome="right", reward=reward, budget_rewards=[0.0, 1.0],
        spans=[{"version": "7", "start": 0, "end": length}], engine=group % 2, seconds=0.5)


def group_of(group: int, size: int = 4) -> list[Rollout]:
    return [rollout(group, sample, length=1 + (group + 3 * sample) % 9) for sample in range(size)]


_tokens = st.lists(st.integers(0, 2**31 - 1), max_size=12)
_float = st.floats(width=32, allow_nan=False)


@st.composite
def any_rollout(draw: st.DrawFn, group: int, sample: int) -> Rollout:
    response = draw(_tokens)
    forced = sorted(draw(st.lists(st.integers(0, len(response)), min_size=2, max_size=2)))
    return Rollout(
        step=STAMP.step, phase=STAMP.phase, cap=STAMP.cap, cap_version=STAMP.version, group=group, sample=sample,
        prompt_id=draw(st.text(max_size=5)), tier=draw(st.text(max_size=5)), answer=draw(st.text(max_size=5)),
        prompt_ids=draw(_tokens), response_ids=response,
        logprobs=draw(st.lists(_float, min_size=len(response), max_size=len(response))),
        finish_reason=draw(st.sampled_from(["stop", "length"])), truncated=draw(st.booleans()),
        outcome=draw(st.sampled_from(["right", "wrong", "failed"])), reward=draw(_float),
        budget_rewards=[draw(_float), draw(_float)],
        spans=[{"version": draw(st.text(max_size=3)), "start": 0, "end": len(response)}],
        engine=draw(st.integers(0, 9)), seconds=draw(_float), forced_start=forced[0], forced_end=forced[1])
