"""A step of each phase with its own learning rate, clip range, entropy weight and advantage, against transformers and
torch: one AdamW over both, the values written out here."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import grpo_reference as reference
import numpy as np
import pytest
from layout_runs import BUCKET, TEMPERATURE, Mode, assert_close, exported, tensor_errors
from models import load_model
from ranks import Rank, Ranks

from siri_megatron.batching.plan import StepPlan, plan_step
from siri_megatron.budget.method import method_at
from siri_megatron.budget.step_budget import PHASES, StepBudget
from siri_megatron.config import AlgorithmConfig, OptimizerConfig, RunConfig, validate
from siri_megatron.learner.settings import LearnerSettings

OVERRIDES: dict[str, dict[str, Any]] = {
    "compression": {"lr": 4e-3, "clip_low": 0.05, "clip_high": 0.1, "advantage": "batch_std"},
    "expansion": {"lr": 1e-3, "clip_high": 0.5, "entropy_coef": 0.05, "advantage": "group_mean"}}
BASE: dict[str, Any] = {"lr": 2e-3, "clip_low": 0.2, "clip_high": 0.28, "entropy_coef": 0.01, "advantage": "group_std"}
LAYOUTS: dict[str, tuple[dict[str, Any], Mode]] = {
    "TP2 packed": ({"tp": 2}, "packed"), "CP2 bucketed": ({"cp": 2}, "bucketed"),
    "DP2 DO overlap bucketed": ({"dp": 2, "distributed_optimizer": True, "overlap": True}, "bucketed"),
    "PP2 packed": ({"pp": 2}, "packed")}
WARMUP = 3


def run_config(path: Path, layout: dict[str, Any], mode: Mode = "packed") -> RunConfig:
    return validate({
        "name": "r", "model": {"path": str(path)}, "budget": {"l_min": 20, "l_max": reference.CAP, "cycle_steps": 2,
                                                              "cycles": 1},
        "data": {"max_prompt_tokens": reference.PROMPT}, "rollout": {"temperature": TEMPERATURE},
        "optimizer": {"lr": BASE["lr"], "weight_decay": 0.1, "eps": 1e-4, "clip_grad": 1e9, "warmup_steps": WARMUP},
        "algorithm": {key: value for key, value in BASE.items() if key != "lr"}, "phases": OVERRIDES,
        "batching": {"mode": mode, "tokens_per_micro_batch": 160},
        "learner": layout}, "test")


def planned(config: RunConfig, rows: reference.Rows, step: int) -> StepPlan:
    """As a run plans it."""
    phase, learner = PHASES[step], config.learner
    return plan_step(reference.lengths(rows), StepBudget(step, 0, phase, reference.CAP, 1), config.algorithm,
                     config.batching, method=method_at(config, phase), dp=learner.dp,
                     multiple=learner.micro_batch_multiple, l_max=reference.CAP, max_prompt=reference.PROMPT,
                     cp=learner.cp)


def two_steps(rank: Rank, config: RunConfig, plans: list[StepPlan], rows: list[reference.Rows]) -> dict[str, Any]:
    with rank.learner(LearnerSettings.of_run(config), bucket=BUCKET) as learner:
        metrics = [learner.train_step(StepPlan.from_json(plan.to_json()), own)
                   for plan, own in zip(plans, rows, strict=True)]
        return {"metrics": metrics, "weights": exported(learner)}


def advantages(rows: reference.Rows, kind: str) -> list[float]:
    """Written out, for groups that all carry a signal."""
    groups: dict[int, list[float]] = {}
    for row in rows.rollouts:
        groups.setdefault(row.group, []).append(row.reward)
    centred = [row.reward - sum(groups[row.group]) / len(groups[row.group]) for row in rows.rollouts]
    if kind == "group_mean":
        return centred
    deviation = {group: np.std(rewards, ddof=1) for group, rewards in groups.items()}
    whole = np.std(centred, ddof=1)
    return [one / ((whole if kind == "batch_std" else deviation[row.group]) + 1e-6)
            for one, row in zip(centred, rows.rollouts, strict=True)]


def expected(path: Path, plans: list[StepPlan], rows: list[reference.Rows], methods: list[dict[str, Any]]
             ) -> dict[str, np.ndarray]:
    """Weights after both steps. Each step is two updates; the learning rate of update u (from 0) is warmed up."""
    model = load_model(path)
    adamw, update = reference.torch_adamw(model, OptimizerConfig(lr=1, weight_decay=0.1, eps=1e-4)), 0
    for plan, own, method in zip(plans, rows, methods, strict=True):
        keys = {key: value for key, value in method.items() if key != "lr"}
        plan = replace(plan, advantages=tuple(advantages(own, method["advantage"])))
        for one in plan.optimizer_steps:
            optimizer = OptimizerConfig(lr=method["lr"] * min(1, (update + 1) / WARMUP), weight_decay=0.1, eps=1e-4,
                                        clip_grad=1e9)
            found = reference.train(model, own, replace(plan, optimizer_steps=(one,)), AlgorithmConfig(**keys),
                                    optimizer, TEMPERATURE, adamw=adamw)
            update += 1
    return found.weights


METHODS = [BASE | OVERRIDES[phase] for phase in PHASES]


@pytest.fixture(scope="module")
def rows(path: Path) -> list[reference.Rows]:
    """Two steps of rollouts; the groups of a step differ in their share of right answers, so that deviations do."""
    steps = [reference.rollouts(6, 4, load_model(path), TEMPERATURE, seed) for seed in (1, 2)]
    for step in steps:
        for number, row in enumerate(step.rollouts):
            row.reward = float(number % 4 < 1 + row.group % 3)
    return steps


@pytest.mark.parametrize("layout", LAYOUTS)
def test_each_phase_trains_with_its_own(ranks: Ranks, path: Path, rows: list[reference.Rows], layout: str) -> None:
    config = run_config(path, *LAYOUTS[layout])
    plans = [planned(config, own, step) for step, own in enumerate(rows)]
    assert [len(plan.optimizer_steps) for plan in plans] == [2, 2]
    wanted = expected(path, plans, rows, METHODS)
    for answer in ranks.run(two_steps, config, plans, rows):
        assert_close(answer["weights"], wanted, 1e-4)
        for metrics, method, warm in zip(answer["metrics"], METHODS, (2 / WARMUP, 1.0), strict=True):
            assert metrics["lr"] == pytest.approx(method["lr"] * warm)
            assert (metrics["clip_low"], metrics["clip_high"]) == (method["clip_low"], method["clip_high"])
            assert metrics["entropy_weight"] == method["entropy_coef"]


@pytest.mark.parametrize(("phase", "key"), [(phase, key) for phase in PHASES for key in OVERRIDES[phase]])
def test_negative_control_every_override_shows(path: Path, rows: list[reference.Rows], phase: str, key: str) -> None:
    """The reference with the run's own value of one key in one phase is far from the one that the learner matches."""
    plans = [planned(run_config(path, {}), own, step) for step, own in enumerate(rows)]
    without = [method | ({key: BASE[key]} if name == phase else {})
               for name, method in zip(PHASES, METHODS, strict=True)]
    found, wanted = (expected(path, plans, rows, methods) for methods in (without, METHODS))
    assert max(tensor_errors(found, wanted).values()) > 5e-4


def test_resumed_at_the_border_in_any_layout(ranks: Ranks, path: Path, rows: list[reference.Rows]) -> None:
    """Whatever rate a checkpoint may have brought into the parameter groups, the plan's counts."""
    config = run_config(path, {"dp": 2, "distributed_optimizer": True})
    plans = [planned(config, own, step) for step, own in enumerate(rows)]
    wanted = ranks.run(two_steps, config, plans, rows)[0]
    for layout in ({"dp": 2, "distributed_optimizer": True}, {"tp": 2}):
        resumed = run_config(path, layout)
        again = [plans[0], planned(resumed, rows[1], 1)]
        found = ranks.run(stopped_between, config, resumed, again, rows)[0]
        assert found["lr"] == METHODS[1]["lr"]
        assert_close(found["weights"], wanted["weights"], 1e-5)


def stopped_between(rank: Rank, before: RunConfig, after: RunConfig, plans: list[StepPlan], rows: list[reference.Rows]
                    ) -> dict[str, Any]:
    """One step, a commit; another learner, in another layout maybe, reads it and makes the second."""
    from siri_megatron.checkpoint import saver, store
    from siri_megatron.paths import RunDir

    paths = RunDir(rank.directory)
    with rank.learner(LearnerSettings.of_run(before), bucket=BUCKET) as learner:
        learner.train_step(plans[0], rows[0])
        saver.save(paths, learner, before, step=1, tag=None, decisions={})
    with rank.learner(LearnerSettings.of_run(after), bucket=BUCKET) as learner:
        record = store.latest(paths)
        assert record is not None
        store.restore(paths, learner, record)
        for group in learner.optimizer.param_groups:
            group["lr"] = 1.0
        metrics = learner.train_step(plans[1], rows[1])
        return {"lr": metrics["lr"], "weights": exported(learner)}
