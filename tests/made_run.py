"""A run directory with metrics and a ledger, made without engines or learners. Not a test."""

from __future__ import annotations

from pathlib import Path

from siri_megatron import config as configs
from siri_megatron.budget.step_budget import StepBudget
from siri_megatron.estimate.step import at_cap
from siri_megatron.launch.calibrate import measured_setup
from siri_megatron.ledger.schema import Rollout
from siri_megatron.ledger.write import StepWriter
from siri_megatron.observe import jsonl
from siri_megatron.paths import RunDir


def write_run(config_path: Path, name: str = "earlier", *, slow: float = 1.0, steps: int = 10) -> Path:
    """The directory of a run of a config, called `name`; seconds are those of the nominal rates, times `slow`."""
    config = configs.load(config_path, [f"name={name}"])
    paths = RunDir(config.run_dir)
    configs.save(config, paths.config)
    setup = measured_setup(config)
    for step in range(steps):
        cap = (64, 64, 48, 32, 16)[step % 5]
        writer = StepWriter(paths.ledger, StepBudget(step, 0, "compression", cap, 1), "identity")
        for group in range(8):
            writer.append([rollout(step, cap, group, sample) for sample in range(4)])
        writer.close()
        expected = at_cap(setup, cap)
        jsonl.append(paths.metrics, {"step": step, "cap": cap, "verification_s": 0.01, "planning_s": 0.0,
                                     "other_s": 0.0, "push_s": 0.05, "generation_s": slow * expected.generation_s,
                                     "training_s": slow * expected.training_s})
    jsonl.append(paths.events, {"ts": 0.0, "kind": "commit", "step": 4, "seconds": 0.25})
    return paths.root


def rollout(step: int, cap: int, group: int, sample: int) -> Rollout:
    length = min(cap, 10 + 7 * ((group + 3 * sample) % 9))
    return Rollout(step=step, phase="compression", cap=cap, cap_version=1, group=group, sample=sample, prompt_id="p",
                   tier="t", answer="1", prompt_ids=[1] * 8, response_ids=[2] * length, logprobs=[-1.0] * length,
                   finish_reason="stop", truncated=length == cap, outcome="right" if sample else "wrong",
                   reward=float(bool(sample)), budget_rewards=[0.0, 1.0], spans=[], engine=group % 2,
                   seconds=1.0)
