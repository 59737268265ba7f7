"""Step statistics from ledger rows. Oracle: counting in plain Python."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from siri_megatron.budget.step_budget import StepBudget
from siri_megatron.config import RolloutConfig
from siri_megatron.ledger.read import StepRows, open_step
from siri_megatron.ledger.schema import Rollout
from siri_megatron.ledger.write import StepWriter
from siri_megatron.rollout.stats import step_stats

STAMP = StepBudget(step=2, cycle=0, phase="compression", cap=9, version=1)
BASE = Rollout(step=2, phase="compression", cap=9, cap_version=1, group=0, sample=0, prompt_id="p", tier="", answer="",
               prompt_ids=[1, 2], response_ids=[], logprobs=[], finish_reason="stop", truncated=False, outcome="right",
               reward=0.0, budget_rewards=[], spans=[], engine=0, seconds=0.0)
ROLLOUT = RolloutConfig(prompts_per_step=4, budget_grid=(4, 9))
verdict = st.sampled_from([0.0, 1.0, math.nan])


@settings(max_examples=30)
@given(st.lists(st.lists(st.tuples(verdict, st.integers(1, 9), st.booleans()), min_size=2, max_size=4), min_size=1,
                max_size=4))
def test_against_counting(tmp_path_factory: pytest.TempPathFactory,
                          groups: list[list[tuple[float, int, bool]]]) -> None:
    root: Path = tmp_path_factory.mktemp("ledger")
    writer = StepWriter(root, STAMP, "id")
    for g, group in enumerate(groups):
        writer.append([replace(BASE, group=g, sample=s, reward=reward, truncated=cut, response_ids=[3] * length,
                               logprobs=[0.0] * length, budget_rewards=[0.0, reward], engine=g % 2,
                               forced_end=length % 3)
                       for s, (reward, length, cut) in enumerate(group)])
    writer.close()
    stats = step_stats(open_step(root, 2), ROLLOUT)
    rows = [row for group in groups for row in group]
    judged = [reward for reward, _, _ in rows if not math.isnan(reward)]
    assert stats["accuracy"] == (sum(judged) / len(judged) if judged else None)
    assert stats["budget_accuracy"]["9"] == stats["accuracy"]  # rising_budget
    for name in ("truncated", "accuracy_untruncated"):
        assert stats[f"budget_{name}"]["9"] == stats[name]
    short = [(reward, length <= 4 and not cut) for reward, length, cut in rows]  # budget_rewards at 4 are all 0
    assert stats["budget_truncated"]["4"] == pytest.approx(sum(not ends for _, ends in short) / len(rows))
    assert stats["budget_accuracy_untruncated"]["4"] == (0.0 if any(ends for _, ends in short) else None)
    assert stats["failed_verifications"] == len(rows) - len(judged)
    assert stats["tokens"] == sum(length for _, length, _ in rows)
    assert stats["prompt_tokens"] == 2 * len(rows)
    assert stats["truncated"] == pytest.approx(sum(cut for _, _, cut in rows) / len(rows))
    assert stats["forced"] == pytest.approx(sum(length % 3 > 0 for _, length, _ in rows) / len(rows))
    voted = [{reward for reward, _, _ in group if not math.isnan(reward)} for group in groups]
    assert stats["all_wrong_groups"] == pytest.approx(voted.count({0.0}) / len(groups))
    assert stats["all_right_groups"] == pytest.approx(voted.count({1.0}) / len(groups))
    assert (stats["mean_cap"], stats["lowered_caps"], stats["dot_cut"]) == (9, 0, 0)
    assert sum(stats["engines"].values()) == stats["samples"] == len(rows)


def test_prompts_with_caps_of_their_own(tmp_path: Path) -> None:
    """At B = 4 the prompt with the cap 3 is as it is at 3, cut and wrong; a step with the cap 4 would say the same."""
    writer = StepWriter(tmp_path, STAMP, "id")
    for group, (cap, cut, rewards) in enumerate([(3, True, [0.0, 0.0]), (9, False, [0.0, 1.0])]):
        writer.append([replace(BASE, group=group, cap=cap, truncated=cut, reward=rewards[1], budget_rewards=rewards,
                               response_ids=[3] * (3 if cut else 5), finish_reason="length" if cut else "cut")])
    writer.close()
    stats = step_stats(open_step(tmp_path, 2), ROLLOUT)
    assert (stats["mean_cap"], stats["lowered_caps"], stats["dot_cut"]) == (6, 0.5, 0.5)
    assert (stats["truncated"], stats["budget_truncated"]) == (0.5, {"4": 1.0, "9": 0.5})
    assert (stats["accuracy"], stats["budget_accuracy"]) == (0.5, {"4": 0.0, "9": 0.5})


def test_own_prompts_vote(tmp_path: Path) -> None:
    """Of two right and two wrong groups three refills, all of them mixed, change no verdict; their cost counts."""
    def write(root: Path, groups: int) -> StepRows:
        writer = StepWriter(root, STAMP, "id")
        for group in reversed(range(groups)):
            rewards = [float(group < 2)] * 2 if group < 4 else [0.0, 1.0]
            writer.append([replace(BASE, group=group, sample=sample, reward=reward, budget_rewards=[0.0, reward],
                                   response_ids=[3] * (2 + group), truncated=group > 3)
                           for sample, reward in enumerate(rewards)])
        writer.close()
        return open_step(root, 2)

    refilled = ROLLOUT.model_copy(update={"max_refill": 1.0})
    own, more = (step_stats(write(tmp_path / str(groups), groups), refilled) for groups in (4, 7))
    spent = {"tokens", "prompt_tokens", "engines", "refill_groups"}
    assert {key: value for key, value in own.items() if key not in spent} == {
        key: value for key, value in more.items() if key not in spent}
    assert (own["accuracy"], own["truncated"], own["samples"], own["refill_groups"]) == (0.5, 0.0, 8, 0)
    assert (more["tokens"], more["prompt_tokens"], more["refill_groups"]) == (2 * sum(range(2, 9)), 28, 3)
    everything = step_stats(open_step(tmp_path / "7", 2), ROLLOUT.model_copy(update={"prompts_per_step": 7}))
    assert everything["truncated"] > 0.4  # negative control
    assert "refill_groups" not in everything
