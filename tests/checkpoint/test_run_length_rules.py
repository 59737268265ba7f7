"""Rules with a state on two real ranks: rank 0 shapes, remembers and orders caps; a killed run goes on as if never."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from learners import same, stored
from models import write_model
from ranks import Rank, RankFailed, run_ranks
from replayed import replayed
from test_run import small_config

from siri_megatron.budget.controller import PhaseController
from siri_megatron.budget.prompt_caps import PromptCaps
from siri_megatron.budget.step_budget import StepBudget
from siri_megatron.config import RunConfig
from siri_megatron.ledger.read import open_step
from siri_megatron.ledger.schema import Rollout
from siri_megatron.ledger.write import StepWriter
from siri_megatron.paths import RunDir

STEPS, GRID = 6, (8, 16)
CAPS = {"rule": "da_dler", "floor": 4}
LEASH = {"length_rule": "leash", "leash": {"target_share": 0.4, "start": 0.2, "rate": 0.3}}
LASER_D = {"length_rule": "laser_d", "laser_d": {"every_steps": 2}}
CAPS_OF_STEPS = [14, 10, 8, 10, 14, 16]
LEARNT = ("loss", "grad_norm", "entropy", "shaped_reward", "leash_lambda", "mean_cap", "lowered_caps", "accuracy",
          "uniform_groups", "all_wrong_groups", "all_right_groups")


def config_of(place: Path, reward: dict[str, Any], prompt_caps: dict[str, Any]) -> RunConfig:
    config = small_config(place)
    budget = {"l_min": 8, "l_max": 16, "cycle_steps": STEPS, "cycles": 1, "prompt_caps": prompt_caps}
    return RunConfig.model_validate({**config.model_dump(), "budget": budget, "reward": reward, "checkpoint": {
        "every_steps": 2, "keep": 9, "export_phase_ends": False}})


def write_ledger(config: RunConfig, ledger: Path) -> list[dict[str, int]]:
    """Two groups a step, of four prompts in turn: one is solved, one half, two never. Returns each step's caps."""
    controller, caps, ordered = PhaseController(config.budget), PromptCaps(config.budget), []
    for step in range(controller.steps):
        stamp = controller.budget(step)
        ordered.append(caps.below(stamp.cap))
        writer = StepWriter(ledger, stamp, "test")
        for group in range(2):
            prompt = (2 * step + group) % 4
            cap = ordered[-1].get(f"p{prompt}", stamp.cap)
            writer.append([rollout(stamp, group, prompt, cap, sample) for sample in range(4)])
        writer.close()
        caps.observe(open_step(ledger, step))
    return ordered


def rollout(stamp: StepBudget, group: int, prompt: int, cap: int, sample: int) -> Rollout:
    wanted = 3 + sample + stamp.step
    right = wanted <= cap and (prompt == 0 or (prompt == 1 and sample % 2 == 0))
    length = min(wanted, cap)
    return Rollout(
        step=stamp.step, phase=stamp.phase, cap=cap, cap_version=stamp.version, group=group, sample=sample,
        prompt_id=f"p{prompt}", tier="", answer="1", prompt_ids=[1, 2, 3], response_ids=[4 + sample] * length,
        logprobs=[-3.0] * length, finish_reason="stop", truncated=wanted > cap, outcome="right" if right else "wrong",
        reward=float(right), budget_rewards=[float(right and wanted <= min(budget, cap)) for budget in GRID],
        spans=[{"version": str(stamp.step), "start": 0, "end": length}], engine=0, seconds=0.1)


def train(rank: Rank, config: RunConfig, place: Path, name: str, die_at: int = -1) -> list[dict[str, int]]:
    """Train `name` from the recorded ledger, from its last commit on; rank 0 dies when step `die_at` is asked for.

    Returns the caps that rank 0 ordered, a mapping a step; nothing on rank 1.
    """
    from siri_megatron.loop import train as loop

    run = replayed(rank, config, place, name, die_at)
    loop(run)
    run.close()
    asked: list[dict[str, int]] = run.source.caps_asked
    return asked


def records(place: Path, name: str) -> list[dict[str, Any]]:
    from siri_megatron.observe import jsonl

    return [{key: record.get(key) for key in LEARNT} for record in jsonl.read(RunDir(place / name).metrics)]


def commit_of(place: Path, name: str) -> dict[str, Any]:
    from siri_megatron.checkpoint import store

    return store.commits(RunDir(place / name))[-1].decisions


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("rules")
    write_model(place / "model")
    return place


@pytest.fixture(scope="module")
def ordered(place: Path) -> list[dict[str, int]]:
    return write_ledger(config_of(place, LEASH, CAPS), RunDir(place / "recorded").ledger)


@pytest.fixture(scope="module")
def whole(place: Path, ordered: list[dict[str, int]]) -> list[dict[str, Any]]:
    """The records of a run that was never stopped."""
    assert run_ranks(train, 2, config_of(place, LEASH, CAPS), place, "whole", timeout_s=180) == [ordered, []]
    return records(place, "whole")


def test_caps_and_lambda_by_hand(ordered: list[dict[str, int]], whole: list[dict[str, Any]]) -> None:
    """p0 and p1 are seen in steps 0, 2, 4, and from then on have half of the step's cap while they are solved."""
    assert ordered[0] == {}
    assert ordered[1:3] == [{"p0": 5, "p1": 5}, {"p0": 4, "p1": 4}]
    assert ordered[3:5] == [{}, {}]  # 5 to 8 tokens were wanted in 4: never solved, so the whole cap again
    assert ordered[5] == {"p0": 8, "p1": 8}
    assert [record["mean_cap"] for record in whole] == [14, 10, 4, 10, 14, 16]
    assert [record["lowered_caps"] for record in whole] == [0, 0, 1, 0, 0, 0]
    weight, seen = 0.2, []
    for step, record in enumerate(whole):
        caps = [record["mean_cap"]] * 4
        seen.append(weight)
        relative = [min(3 + sample + step, cap) / (0.4 * cap) for sample, cap in enumerate(caps)]
        weight = min(1.0, max(0.0, weight + 0.3 * (sum(relative) / 4 - 1)))
    assert [record["leash_lambda"] for record in whole] == pytest.approx(seen)
    assert all(record["shaped_reward"] < record["accuracy"] for record in whole[1:])


def test_killed_and_resumed_is_never_stopped(place: Path, ordered: list[dict[str, int]],
                                             whole: list[dict[str, Any]]) -> None:
    """Killed in step 2, whose caps come from step 0: caps, lambda, metrics, states and weights are those of one run."""
    config = config_of(place, LEASH, CAPS)
    with pytest.raises(RankFailed, match="killed"):
        run_ranks(train, 2, config, place, "killed", 2, timeout_s=60)
    resumed = run_ranks(train, 2, config, place, "killed", timeout_s=180)
    assert resumed == [ordered[2:], []]
    assert records(place, "killed") == whole
    assert commit_of(place, "killed") == commit_of(place, "whole")
    assert commit_of(place, "whole")["prompt_caps"] == {"rates": {"p0": 1.0, "p1": 0.5, "p2": 0.0, "p3": 0.0}}
    assert same(stored(place / "killed", STEPS), stored(place / "whole", STEPS))


def test_negative_control_without_the_rule_other_weights(place: Path, whole: list[dict[str, Any]]) -> None:
    """The rule moves the weights: groups that are all right or all wrong, but of different lengths, are trained on."""
    none = config_of(place, {}, CAPS)
    run_ranks(train, 2, none, place, "none", timeout_s=180)
    assert not same(stored(place / "none", STEPS), stored(place / "whole", STEPS))
    plain = records(place, "none")
    assert [record["shaped_reward"] for record in plain] == [record["accuracy"] for record in whole]
    assert [record["uniform_groups"] for record in plain] == [
        record["all_wrong_groups"] + record["all_right_groups"] for record in plain]
    assert [record["uniform_groups"] for record in whole] == [0, 0, 1, 0, 0, 0]  # step 2: all are cut at 4 tokens
    assert min(record["uniform_groups"] for record in plain) > 0


def test_negative_control_other_caps_than_the_recorded(place: Path, ordered: list[dict[str, int]]) -> None:
    """A replay orders the caps that it would have sampled under; without the rule they are not the recorded ones."""
    with pytest.raises(RankFailed, match=r"prompt p0 of ledger step 2 was admitted with cap 4, asked for is 8"):
        run_ranks(train, 2, config_of(place, LEASH, {}), place, "other", timeout_s=60)


def test_laser_d_estimates_its_targets(place: Path, ordered: list[dict[str, int]]) -> None:
    """Steps 0 and 1: p0 is easy (lengths 3..6, C = 2), p1 medium (C = 1), p2 and p3 hard (and longer by a token)."""
    run_ranks(train, 2, config_of(place, LASER_D, CAPS), place, "laser", timeout_s=180)
    from siri_megatron.observe import jsonl

    seen = [[record[f"laser_d_{name}"] for name in ("easy", "medium", "hard")]
            for record in jsonl.read(RunDir(place / "laser").metrics)]
    assert seen[:2] == [[None] * 3] * 2
    assert seen[2:4] == [[4, 6, 7]] * 2
    assert commit_of(place, "laser")["length_rule"]["steps"] == STEPS
