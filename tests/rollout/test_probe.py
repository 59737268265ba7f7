"""The invariants of `rollout/probe.py`."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from siri_megatron.config import PushConfig
from siri_megatron.errors import EngineError
from siri_megatron.rollout import probe

TOKENS = [[-1.0, -2.0], [-0.5]]


def test_same_prompts() -> None:
    assert probe.prompts(37) == probe.prompts(37)
    assert all(0 <= token < 37 for prompt in probe.prompts(37) for token in prompt)
    assert [body["token_ids"] for body in probe.requests(37, 0.7)] == probe.prompts(37)
    assert len({body["sampling_params"]["seed"] for body in probe.requests(37, 0.7)}) == probe.PROMPTS
    assert {body["sampling_params"]["temperature"] for body in probe.requests(37, 0.7)} == {0.7}
    assert probe.PROMPT_TOKENS + probe.ANSWER_TOKENS <= 32


@given(st.lists(st.lists(st.lists(st.floats(-20, 0), min_size=1, max_size=5), min_size=1, max_size=4), min_size=1,
                max_size=3), st.randoms())
def test_worst_engine_decides(theirs: list[list[list[float]]], draw: object) -> None:
    """Against a written-out loop."""
    ours = [[[value - draw.random() for value in one] for one in engine] for engine in theirs]  # type: ignore[attr-defined]
    names = [f"engine {number}" for number in range(len(theirs))]
    report = probe.compare("3", names, theirs, ours)
    means, most = [], 0.0
    for engine, learner in zip(theirs, ours, strict=True):
        total = count = 0.0
        for one, other in zip(engine, learner, strict=True):
            for x, y in zip(one, other, strict=True):
                total, count, most = total + abs(x - y), count + 1, max(most, abs(x - y))
        means.append(total / count)
    assert report.metrics == {"probe_mean_abs": pytest.approx(max(means)), "probe_max_abs": most}
    assert report.worst.engine == names[means.index(max(means))]


def test_one_engine_that_differs_is_named() -> None:
    good, bad = [[-1.0, -2.0], [-0.5]], [[-1.0, -2.0], [-0.2]]
    report = probe.compare("3", ["engine 0", "engine 1"], [good, bad], [TOKENS, TOKENS])
    with pytest.raises(EngineError, match=r"engine 1 .* differ by 0\.1 nats .*push\.probe_bound=0\.05"):
        probe.check_bound(report, 0.05)
    probe.check_bound(report, 0.11)


def test_no_number_is_above_every_bound() -> None:
    report = probe.compare("3", ["engine 0", "engine 1"], [TOKENS, [[-1.0, math.nan], [-0.5]]], [TOKENS, TOKENS])
    with pytest.raises(EngineError, match="engine 1"):
        probe.check_bound(report, 1e9)


def test_version_counts() -> None:
    span = {"version": "2", "start": 0, "end": probe.ANSWER_TOKENS}
    ids = list(range(probe.ANSWER_TOKENS))
    content = [{"token_id": token, "logprob": -1.0} for token in ids]
    payload = {"choices": [{"index": 0, "token_ids": ids, "finish_reason": "length", "logprobs": {"content": content},
                            "weight_versions": [span]}]}
    assert probe.parse("engine 0", [payload], "2")[0].token_ids == ids
    with pytest.raises(EngineError, match=r"engine 0 answered a probe of weight version '3' under \['2'\]"):
        probe.parse("engine 0", [payload], "3")


def test_a_bound_without_probes_is_refused() -> None:
    with pytest.raises(ValueError, match=r"probe_bound=0\.2 is never read"):
        PushConfig(probe_bound=0.2)
    assert PushConfig(probe_bound=0.2, probe_every=5).probe_bound == 0.2
