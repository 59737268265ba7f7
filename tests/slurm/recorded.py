"""A ledger to train from, made without engines: jobs whose matter is Slurm need none. Not a test."""

from __future__ import annotations

import random
from pathlib import Path

from slurm_cluster import REPO

from siri_megatron import config as configs
from siri_megatron.budget.controller import controller_of
from siri_megatron.budget.step_budget import StepBudget
from siri_megatron.launch.model_files import inspect_model
from siri_megatron.launch.preflight import replace_fingerprint
from siri_megatron.ledger.schema import Rollout
from siri_megatron.ledger.write import StepWriter
from siri_megatron.paths import RunDir

SCHEDULE = ("budget.cycle_steps=24", "budget.cycles=1", "rollout.prompts_per_step=8", "checkpoint.every_steps=24",
            "evaluation.at_start=false", "evaluation.at_phase_ends=false")
VOCABULARY = range(3, 12)


def record(runs: Path, name: str, *schedule: str) -> Path:
    """The directory of a run of tiny.yaml whose rollouts are drawn at random."""
    overrides = [f"name={name}", f"runs_dir={runs}", *schedule]
    config = configs.load(REPO / "configs" / "tiny.yaml", overrides)
    config = replace_fingerprint(config, inspect_model(REPO / config.model.path))
    paths = RunDir(config.run_dir)
    configs.save(config, paths.config)
    controller, draw = controller_of(config.budget, grid=config.rollout.budget_grid), random.Random(1)
    for step in range(controller.steps):
        budget = controller.budget(step)
        writer = StepWriter(paths.ledger, budget, "identity")
        for group in range(config.rollout.prompts_per_step):
            writer.append([_rollout(budget, group, sample, draw)
                           for sample in range(config.rollout.samples_per_prompt)])
        writer.close()
    return paths.root


def _rollout(budget: StepBudget, group: int, sample: int, draw: random.Random) -> Rollout:
    length = draw.randrange(4, budget.cap)
    right = draw.random() < 0.5
    return Rollout(step=budget.step, phase=budget.phase, cap=budget.cap, cap_version=budget.version, group=group,
                   sample=sample, prompt_id=f"p{group}", tier="t", answer="1",
                   prompt_ids=draw.choices(VOCABULARY, k=8), response_ids=draw.choices(VOCABULARY, k=length),
                   logprobs=[-1.0] * length, finish_reason="stop", truncated=False,
                   outcome="right" if right else "wrong", reward=float(right),
                   budget_rewards=[float(right)] * 5, engine=0, seconds=1.0,
                   spans=[{"version": "0", "start": 0, "end": length}])
