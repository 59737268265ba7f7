"""A run with dynamic sampling on two real ranks: what it trains on, what it says, and that a killed one goes on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from models import write_model
from ranks import Rank, RankFailed, run_ranks
from replayed import replayed
from test_run import PROMPTS, SAMPLES, small_config

from siri_megatron.budget.controller import PhaseController
from siri_megatron.budget.step_budget import StepBudget
from siri_megatron.config import RunConfig
from siri_megatron.ledger.schema import Rollout
from siri_megatron.ledger.write import StepWriter
from siri_megatron.paths import RunDir

SIGNALS = {0: [False, True, False, True, True], 1: [False, False, False, True, False, False],
           2: [True, True], 3: [False, True, True]}
"""step -> whether its groups carry a signal. Steps have two prompts and at most four refills: step 0 has one group too
many, step 1 lacks one, step 2 needs no refill."""
SURPLUS = (0, 4)
KILLED_AT = 2


def refill_config(place: Path) -> RunConfig:
    config = small_config(place)
    rollout = config.rollout.model_dump() | {"max_refill": 2.0}
    budget = {"l_min": 8, "l_max": 16, "cycle_steps": 4, "cycles": 1}
    return RunConfig.model_validate({**config.model_dump(), "rollout": rollout, "budget": budget,
                                     "algorithm": {"advantage": "batch_std", "mini_batches": 1}})


def write_ledger(config: RunConfig, ledger: Path, other: tuple[int, int] | None = None) -> None:
    """other: the (step, group) whose responses are others."""
    controller = PhaseController(config.budget)
    for step, signals in SIGNALS.items():
        writer = StepWriter(ledger, controller.budget(step), "test")
        for group in np.random.default_rng(step).permutation(len(signals)).tolist():  # as they happened to finish
            writer.append([rollout(controller.budget(step), group, sample, mixed=signals[group],
                                   first=20 if (step, group) == other else 4) for sample in range(SAMPLES)])
        writer.close()


def rollout(stamp: StepBudget, group: int, sample: int, *, mixed: bool, first: int) -> Rollout:
    reward, length = float(sample % 2 if mixed else group % 2), 2 + (group + 2 * sample) % 5
    return Rollout(
        step=stamp.step, phase=stamp.phase, cap=stamp.cap, cap_version=stamp.version, group=group, sample=sample,
        prompt_id=f"p{group}", tier="", answer="1", prompt_ids=[1, 2, 3], response_ids=[first + sample] * length,
        logprobs=[-3.0] * length, finish_reason="stop", truncated=False, outcome="right" if reward else "wrong",
        reward=reward, budget_rewards=[0.0, reward], spans=[{"version": "0", "start": 0, "end": length}], engine=0,
        seconds=0.1)


def train(rank: Rank, config: RunConfig, place: Path, name: str, die_at: int = -1) -> dict[str, Any]:
    from siri_megatron.loop import train as loop
    from siri_megatron.observe import jsonl

    run = replayed(rank, config, place, name, die_at)
    loop(run)
    weights = {key: tensor.numpy().copy() for key, tensor in run.learner.export_tensors()}
    run.close()
    events = [(event["kind"], event["step"]) for event in jsonl.read(run.paths.events)]
    return {"weights": weights, "records": jsonl.read(run.paths.metrics), "events": events}


def trained(place: Path, name: str, die_at: int = -1) -> dict[str, Any]:
    answers: list[dict[str, Any]] = run_ranks(train, 2, refill_config(place), place, name, die_at, timeout_s=120)
    return answers[0]


def recorded(root: Path, other: tuple[int, int] | None = None) -> Path:
    root.mkdir()
    write_model(root / "model")
    write_ledger(refill_config(root), RunDir(root / "recorded").ledger, other)
    return root


def same(one: dict[str, np.ndarray], other: dict[str, np.ndarray]) -> bool:
    return one.keys() == other.keys() and all(np.array_equal(one[name], other[name]) for name in one)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return recorded(tmp_path_factory.mktemp("refill") / "run")


@pytest.fixture(scope="module")
def whole(place: Path) -> dict[str, Any]:
    return trained(place, "whole")


def test_what_it_trains_on_and_says(whole: dict[str, Any]) -> None:
    figures = [{key: record[key] for key in ("refill_groups", "dropped_groups", "surplus_groups", "unfilled",
                                             "uniform_groups", "samples", "optimizer_steps")}
               for record in whole["records"]]
    assert [list(step.values()) for step in figures] == [
        [3, 3, 1, 0.0, 0.5, PROMPTS * SAMPLES, 1], [4, 5, 0, 0.5, 1.0, PROMPTS * SAMPLES, 1],
        [0, 0, 0, 0.0, 0.0, PROMPTS * SAMPLES, 1], [1, 1, 0, 0.0, 0.5, PROMPTS * SAMPLES, 1]]
    assert [step for kind, step in whole["events"] if kind == "short_step"] == [1]
    assert [step for kind, step in whole["events"] if kind == "zero_signal"] == []


def test_killed_and_resumed_is_never_stopped(place: Path, whole: dict[str, Any]) -> None:
    with pytest.raises(RankFailed, match="killed"):
        trained(place, "killed", KILLED_AT)
    assert same(trained(place, "killed")["weights"], whole["weights"])


@pytest.mark.parametrize(("other", "counts"), [(SURPLUS, False), ((0, 0), False), ((0, 3), True)])
def test_groups_that_are_not_trained_on_leave_no_trace(tmp_path: Path, whole: dict[str, Any], other: tuple[int, int],
                                                       counts: bool) -> None:
    """Other tokens in a surplus group, in one without a signal, and (negative control) in one that is trained on."""
    changed = trained(recorded(tmp_path / "other", other), "whole")
    assert same(changed["weights"], whole["weights"]) != counts
