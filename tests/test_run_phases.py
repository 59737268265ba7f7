"""A run whose phases differ in method, on two real ranks: killed and resumed, it is the run that never stopped."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from models import write_model
from ranks import Rank, RankFailed, run_ranks
from replayed import replayed
from test_run import small_config

from siri_megatron.budget.controller import controller_of
from siri_megatron.budget.step_budget import StepBudget
from siri_megatron.config import RunConfig
from siri_megatron.ledger.schema import Rollout
from siri_megatron.ledger.write import StepWriter
from siri_megatron.paths import RunDir

PHASES = {"compression": {"overlong": "mask", "advantage": "batch_std", "clip_low": 0.05, "clip_high": 0.1, "lr": 4e-3},
          "expansion": {"overlong": "soft", "entropy_coef": 0.05, "lr": 5e-4}}
KILLED_AT = 3
"""The second step of an expansion; the last commit is the one before it, at the border."""


def phased_config(place: Path, phases: dict[str, Any] = PHASES) -> RunConfig:
    config = small_config(place, distributed_optimizer=True).model_dump()
    budget = {"l_min": 8, "l_max": 16, "cycle_steps": 4, "cycles": 1}
    return RunConfig.model_validate({
        **config, "budget": budget, "phases": phases, "checkpoint": {"every_steps": 2, "keep": 9},
        "optimizer": {**config["optimizer"], "warmup_steps": 3}, "learner": {**config["learner"], "tp": 1, "dp": 2}})


def write_ledger(config: RunConfig, ledger: Path) -> None:
    """Responses of 2 to 16 tokens under a cap of 16 or less; the longest are cut, and half of the others right."""
    controller, rng = controller_of(config.budget, grid=config.rollout.budget_grid), np.random.default_rng(3)
    for step in range(controller.steps):
        stamp = controller.budget(step)
        writer = StepWriter(ledger, stamp, "test")
        for group in range(2):
            writer.append([rollout(stamp, group, sample, int(rng.integers(2, 20))) for sample in range(4)])
        writer.close()


def rollout(stamp: StepBudget, group: int, sample: int, wanted: int) -> Rollout:
    length, cut = min(wanted, stamp.cap), wanted > stamp.cap
    reward = float(sample % 2 and not cut)
    return Rollout(
        step=stamp.step, phase=stamp.phase, cap=stamp.cap, cap_version=stamp.version, group=group, sample=sample,
        prompt_id=f"p{group}", tier="", answer="1", prompt_ids=[1, 2, 3], response_ids=[4 + sample] * length,
        logprobs=[-3.0] * length, finish_reason="length" if cut else "stop", truncated=cut,
        outcome="right" if reward else "wrong", reward=reward, budget_rewards=[0.0, reward],
        spans=[{"version": str(stamp.step), "start": 0, "end": length}], engine=0, seconds=0.1)


def train(rank: Rank, config: RunConfig, place: Path, name: str, die_at: int = -1) -> dict[str, Any]:
    """Train `name` from the recorded ledger, from its last commit on; rank 0 dies when step `die_at` is asked for."""
    from siri_megatron.loop import train as loop
    from siri_megatron.observe import jsonl

    run = replayed(rank, config, place, name, die_at)
    first = run.step
    loop(run)
    weights = {key: tensor.numpy().copy() for key, tensor in run.learner.export_tensors()}
    run.close()
    events = [event["message"] for event in jsonl.read(run.paths.events) if event["kind"] == "method"]
    return {"first": first, "weights": weights, "records": jsonl.read(run.paths.metrics), "events": events}


def same(one: dict[str, np.ndarray], other: dict[str, np.ndarray]) -> bool:
    return one.keys() == other.keys() and all(np.array_equal(one[name], other[name]) for name in one)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("phases")
    write_model(place / "model")
    write_ledger(phased_config(place), RunDir(place / "recorded").ledger)
    return place


@pytest.fixture(scope="module")
def whole(place: Path) -> list[dict[str, Any]]:
    return run_ranks(train, 2, phased_config(place), place, "whole", timeout_s=120)


def test_killed_and_resumed_is_never_stopped(place: Path, whole: list[dict[str, Any]]) -> None:
    config = phased_config(place)
    with pytest.raises(RankFailed, match="killed"):
        run_ranks(train, 2, config, place, "killed", KILLED_AT, timeout_s=60)
    resumed = run_ranks(train, 2, config, place, "killed", timeout_s=120)
    assert resumed[0]["first"] == 2
    for found, wanted in zip(resumed, whole, strict=True):
        assert same(found["weights"], wanted["weights"])
    for found, wanted in zip(resumed[0]["records"], whole[0]["records"], strict=True):
        for key in ("phase", "lr", "clip_low", "clip_high", "loss", "entropy_weight", "grad_norm"):
            assert found.get(key) == wanted.get(key), key


def test_the_records_say_what_held(whole: list[dict[str, Any]]) -> None:
    """Warm-up over three updates of two a step; the method's change is an event of its first step."""
    records = whole[0]["records"]
    assert [record["phase"] for record in records] == ["compression"] * 2 + ["expansion"] * 2
    assert [record["lr"] for record in records[1:]] == [4e-3, 5e-4, 5e-4]
    assert [(record["clip_low"], record["clip_high"]) for record in records] == [(0.05, 0.1)] * 2 + [(0.2, 0.28)] * 2
    assert [record.get("entropy_weight") for record in records] == [None, None, 0.05, 0.05]
    assert whole[0]["events"] == [
        "expansion from step 2: overlong mask to soft, advantage batch_std to group_std, clip_low 0.05 to 0.2, "
        "clip_high 0.1 to 0.28, entropy_coef 0 to 0.05, lr 0.004 to 0.0005"]


@pytest.mark.parametrize("phase", ["compression", "expansion"])
@pytest.mark.parametrize("key", ["overlong", "lr"])
def test_negative_control_without_an_override(place: Path, whole: list[dict[str, Any]], phase: str, key: str) -> None:
    """Other weights, and another identity: the run's own checkpoints are refused."""
    fewer = {**PHASES, phase: {name: value for name, value in PHASES[phase].items() if name != key}}
    found = run_ranks(train, 2, phased_config(place, fewer), place, f"{phase}-{key}", timeout_s=120)
    assert not same(found[0]["weights"], whole[0]["weights"])
    with pytest.raises(RankFailed, match="belongs to identity"):
        run_ranks(train, 2, phased_config(place), place, f"{phase}-{key}", timeout_s=60)
