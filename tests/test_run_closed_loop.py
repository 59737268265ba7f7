"""A closed loop on two real ranks: rank 0 hears and decides, a killed run goes on as if it had never stopped."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from models import write_model
from ranks import Rank, RankFailed, run_ranks
from replayed import replayed
from test_run import small_config

from siri_megatron.budget.controller import controller_of
from siri_megatron.budget.step_budget import StepBudget
from siri_megatron.config import RunConfig
from siri_megatron.ledger.read import open_step
from siri_megatron.ledger.schema import Rollout
from siri_megatron.ledger.write import StepWriter
from siri_megatron.paths import RunDir
from siri_megatron.rollout.stats import step_stats

GRID = (4, 8, 16)
CLOSED = {"window": 1, "dwell": 2, "longest_phase": 3, "slope": 5, "delta": 0.5}


def closed_config(place: Path) -> RunConfig:
    config = small_config(place)
    budget = {"schedule": "closed", "l_min": 4, "l_max": 16, "cycle_steps": 4, "cycles": 2, "closed": CLOSED}
    return RunConfig.model_validate({
        **config.model_dump(), "budget": budget, "rollout": {**config.rollout.model_dump(), "budget_grid": GRID},
        "checkpoint": {"every_steps": 2, "keep": 9}})


def write_ledger(config: RunConfig, ledger: Path) -> list[StepBudget]:
    """Rollouts of 3 and 7 + step tokens, clipped to whatever cap the loop issues; half of each kind are right."""
    controller, issued = controller_of(config.budget, grid=GRID), []
    for step in range(controller.steps):
        issued.append(controller.budget(step))
        writer = StepWriter(ledger, issued[-1], "test")
        for group in range(2):
            writer.append([rollout(issued[-1], group, sample) for sample in range(4)])
        writer.close()
        controller.observe(step, step_stats(open_step(ledger, step), config.rollout))
    return issued


def rollout(stamp: StepBudget, group: int, sample: int) -> Rollout:
    wanted, right = 3 if sample < 2 else 7 + stamp.step, sample % 2 == 1
    length, reward = min(wanted, stamp.cap), float(right and wanted <= stamp.cap)
    return Rollout(
        step=stamp.step, phase=stamp.phase, cap=stamp.cap, cap_version=stamp.version, group=group, sample=sample,
        prompt_id=f"p{group}", tier="", answer="1", prompt_ids=[1, 2, 3], response_ids=[4 + sample] * length,
        logprobs=[-3.0] * length, finish_reason="stop", truncated=wanted > stamp.cap,
        outcome="right" if reward else "wrong", reward=reward,
        budget_rewards=[float(right and wanted <= min(budget, stamp.cap)) for budget in GRID],
        spans=[{"version": str(stamp.step), "start": 0, "end": length}], engine=0, seconds=0.1)


def train(rank: Rank, config: RunConfig, place: Path, name: str, die_at: int) -> dict[str, Any]:
    """Train `name` from the recorded ledger, from its last commit on; rank 0 dies when step `die_at` is asked for."""
    from siri_megatron.loop import train as loop
    from siri_megatron.observe import jsonl

    run = replayed(rank, config, place, name, die_at)
    seen: list[dict[str, Any]] = []
    plan = run.plan
    run.plan = lambda batch, budget: (seen.append(budget.to_json()), plan(batch, budget))[1]  # type: ignore[method-assign]
    loop(run)
    run.close()
    return {"first": run.step, "seen": seen, "heard": run.decisions.controller.state()["observed"],
            "caps": [record["cap"] for record in jsonl.read(run.paths.metrics)]}


def left_behind(place: Path, name: str) -> tuple[Any, dict[str, int], list[str]]:
    """Controller state of the last commit, step of every tag, what the controller said (the last of each step)."""
    from siri_megatron.checkpoint import store
    from siri_megatron.observe import jsonl

    paths = RunDir(place / name)
    said = {event["step"]: event["message"] for event in jsonl.read(paths.events) if event["kind"] == "controller"}
    tags = {tag: entry["step"] for tag, entry in store.tags(paths).items()}
    return store.commits(paths)[-1].decisions["controller"], tags, [said[step] for step in sorted(said)]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("closed")
    write_model(place / "model")
    return place


@pytest.fixture(scope="module")
def issued(place: Path) -> list[StepBudget]:
    return write_ledger(closed_config(place), RunDir(place / "recorded").ledger)


def test_killed_and_resumed_is_never_stopped(place: Path, issued: list[StepBudget]) -> None:
    """Killed in step 4, in the middle of a phase: budgets, phase ends, the last commit's state are those of one run."""
    config = closed_config(place)
    whole = run_ranks(train, 2, config, place, "whole", -1, timeout_s=180)
    assert len({budget.cap for budget in issued}) > 2
    assert issued[3].phase == issued[4].phase == "expansion"
    for rank in whole:  # both ranks trained every step under what rank 0 issued
        assert rank["seen"] == [budget.to_json() for budget in issued]
    assert [rank["heard"] for rank in whole] == [7, -1]  # rank 1 could not have known them by itself

    with pytest.raises(RankFailed, match="killed"):
        run_ranks(train, 2, config, place, "killed", 4, timeout_s=60)
    resumed = run_ranks(train, 2, config, place, "killed", -1, timeout_s=180)
    assert resumed[0]["first"] == 4
    assert resumed[1]["seen"] == [budget.to_json() for budget in issued[4:]]
    assert resumed[0]["caps"] == whole[0]["caps"] == [budget.cap for budget in issued]
    assert left_behind(place, "killed") == left_behind(place, "whole")
