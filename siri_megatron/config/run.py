"""One training run: all sections together, and what must match to resume it."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Literal

from pydantic import Field, model_validator

from siri_megatron.config.base import RunName, Section
from siri_megatron.config.budget import BudgetConfig
from siri_megatron.config.method import AlgorithmConfig, BatchingConfig, RewardConfig
from siri_megatron.config.model import LearnerConfig, ModelConfig, OptimizerConfig
from siri_megatron.config.rollout import DataConfig, EngineConfig, EvalConfig, PushConfig, RolloutConfig


class CheckpointConfig(Section):
    every_steps: int = Field(8, ge=1)
    """Commit every so many steps (and at every phase end, at the last step and on a signal)."""
    keep: int = Field(2, ge=1)
    """Newest checkpoints kept; phase ends are kept beside them."""
    async_save: bool = False
    """Write in the background while training goes on. Phase ends, a stop and the last step wait until it is written."""
    on_error: Literal["stop", "continue"] = "stop"
    """What a save that fails does (disk full, read-only directory): end the run, or go on and count it."""
    timeout_s: float = Field(600.0, gt=0)
    """Longest wait until the files of every learner are written."""
    export_phase_ends: bool = True
    """Export a Hugging Face directory at every phase end."""


class LaunchConfig(Section):
    stop_grace_s: float = Field(10.0, gt=0)
    """Seconds after Ctrl-C or SIGTERM in which learners may finish their step and commit; then everything is killed."""


class RunConfig(Section):
    """One training run."""

    name: RunName
    """Name of the run: its directory is runs_dir/name."""
    runs_dir: Path = Path("runs")
    """Directory of the runs."""
    seed: int = 1
    """Seed of every random stream (problem order, sampling seeds)."""
    reproducible: bool = False
    """Per-request sampling seeds and fixed batching: a resumed run is bit-equal to one that never stopped."""
    model: ModelConfig
    data: DataConfig = DataConfig()
    reward: RewardConfig = RewardConfig()
    budget: BudgetConfig
    rollout: RolloutConfig = RolloutConfig()
    engines: EngineConfig = EngineConfig()
    push: PushConfig = PushConfig()
    learner: LearnerConfig = LearnerConfig()
    optimizer: OptimizerConfig
    algorithm: AlgorithmConfig = AlgorithmConfig()
    batching: BatchingConfig = BatchingConfig()
    evaluation: EvalConfig = EvalConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    launch: LaunchConfig = LaunchConfig()
    tensorboard: bool = True
    """Write TensorBoard scalars beside metrics.jsonl."""

    @property
    def run_dir(self) -> Path:
        return self.runs_dir / self.name

    @property
    def max_model_len(self) -> int:
        """Engine context: the configured one, or prompt + l_max rounded up to 32."""
        need = self.data.max_prompt_tokens + max(self.budget.l_max, *self.evaluation.budgets)
        return self.engines.max_model_len or -(-need // 32) * 32

    @model_validator(mode="after")
    def _closed_loop_has_a_grid(self) -> RunConfig:
        budget, grid = self.budget, self.rollout.budget_grid
        if budget.schedule == "closed" and not any(budget.l_min <= at < budget.l_max for at in grid):
            raise ValueError(f"budget.schedule=closed with rollout.budget_grid={list(grid)}, nothing of which lies in "
                             f"l_min={budget.l_min}..l_max={budget.l_max}: L_min is chosen from the grid; add budgets")
        return self


# What must match to resume: the model, the data and the method. Layout, machine and paths may change.
IDENTITY = ("seed", "reproducible", "data", "reward", "budget", "rollout", "optimizer", "algorithm", "batching")


def identity_hash(config: RunConfig) -> str:
    """Hash of everything that must match between a checkpoint and the run that resumes from it."""
    dump = config.model_dump(mode="json")
    picked = {name: dump[name] for name in IDENTITY}
    picked["model"] = {"dtype": config.model.dtype, "fingerprint": config.model.fingerprint}
    picked["rollout"].pop("timeout_s")
    for machine in ("timeout_s", "workers", "memory_gib", "max_failed"):
        picked["reward"].pop(machine)
    return hashlib.sha256(json.dumps(picked, sort_keys=True).encode()).hexdigest()[:16]
