"""One training run: all sections together, and what must match to resume it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, model_validator

from siri_megatron.config.base import RunName, Section
from siri_megatron.config.budget import BudgetConfig
from siri_megatron.config.data import DataConfig
from siri_megatron.config.evaluation import EvalConfig
from siri_megatron.config.launch import LaunchConfig, check_launch
from siri_megatron.config.length_rule import check_length_rule, with_dler
from siri_megatron.config.method import AlgorithmConfig, BatchingConfig, RewardConfig
from siri_megatron.config.model import LearnerConfig, ModelConfig, OptimizerConfig
from siri_megatron.config.phases import PhasesConfig, check_phases
from siri_megatron.config.refill import check_history, check_refill
from siri_megatron.config.rollout import EngineConfig, PushConfig, RolloutConfig


class CheckpointConfig(Section):
    every_steps: int = Field(8, ge=1)
    """Commit every so many steps (and at every phase end, at the last step and on a signal)."""
    keep: int = Field(2, ge=1)
    """Newest checkpoints kept; phase ends are kept beside them."""
    keep_ledger: int | None = Field(None, ge=1)
    """Ledger steps kept of those that the newest commit has consumed; None: all, which a replay needs."""
    async_save: bool = False
    """Write in the background while training goes on. Phase ends, a stop and the last step wait until it is written."""
    on_error: Literal["stop", "continue"] = "stop"
    """What a save that fails does (disk full, read-only directory): end the run, or go on and count it."""
    checksums: bool = True
    """Read each file once more when it is written, for its checksum, and once before a resume loads it, to hold it
    against that."""
    timeout_s: float = Field(600.0, gt=0)
    """Longest wait until the files of every learner are written."""
    export_phase_ends: bool = True
    """Export a Hugging Face directory at every phase end."""


class RunConfig(Section):
    """One training run."""

    name: RunName
    """Name of the run: its directory is runs_dir/name."""
    runs_dir: Path = Path("runs")
    """Directory of the runs."""
    seed: int = 1
    """Seed of every random stream (problem order, sampling seeds)."""
    reproducible: bool = False
    """Seeds per request, prompts prefilled whole, keys not split between an engine's threads on a CPU: a resumed run is
    bit-equal to one that never stopped."""
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
    phases: PhasesConfig = PhasesConfig()
    batching: BatchingConfig = BatchingConfig()
    evaluation: EvalConfig = EvalConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    launch: LaunchConfig = LaunchConfig()
    tensorboard: bool = True
    """Write TensorBoard scalars beside metrics.jsonl."""

    @property
    def run_dir(self) -> Path:
        return self.runs_dir / self.name

    def collect_timeout_s(self, cap: int) -> float:
        """Seconds that the collection of a step with this cap may take, refills included.

        With a lag it shares the engines with the steps beside it, of whatever cap, and may stand aside for evaluations.
        """
        lag = self.rollout.lag
        aside = lag * (self.evaluation_wait_s + self.evaluation_timeout_s) if self._stand_aside else 0.0
        return self._sampling_s(self.budget.l_max if lag else cap) + aside

    @property
    def evaluation_timeout_s(self) -> float:
        return self.evaluation.timeout_s or self._timeout_at(self.evaluation.largest_budget)

    @property
    def evaluation_wait_s(self) -> float:
        """Seconds that an evaluation may wait until rollouts have made room for it."""
        return self._sampling_s(self.budget.l_max) if self._stand_aside else 0.0

    @property
    def _stand_aside(self) -> bool:
        return self.evaluation.rollouts != "beside"

    def _sampling_s(self, cap: int) -> float:
        return self._timeout_at(cap) * (1 + self.rollout.lag) * (1 + self.rollout.max_refill)

    def _timeout_at(self, cap: int) -> float:
        return self.rollout.timeout_s * (1 + cap / self.budget.l_max) / 2

    @property
    def max_model_len(self) -> int:
        """Engine context: the configured one, or prompt + l_max rounded up to 32."""
        need = self.data.max_prompt_tokens + max(self.budget.l_max, self.evaluation.largest_budget)
        return self.engines.max_model_len or -(-need // 32) * 32

    @model_validator(mode="before")
    @classmethod
    def _dler_is_one_line(cls, raw: Any) -> Any:
        return with_dler(raw) if isinstance(raw, Mapping) else raw

    @model_validator(mode="after")
    def _rule_suits_the_rest(self) -> RunConfig:
        check_length_rule(self.reward, self.algorithm, self.phases, self.rollout)
        return self

    @model_validator(mode="after")
    def _refills_are_told_apart(self) -> RunConfig:
        check_refill(self.rollout, self.reward, self.algorithm)
        if self.checkpoint.keep_ledger is not None:
            check_history(self.rollout, self.checkpoint.keep_ledger)
        return self

    @model_validator(mode="after")
    def _push_is_no_hang(self) -> RunConfig:
        if self.engines.hang_s < self.push.timeout_s:
            raise ValueError(f"engines.hang_s={self.engines.hang_s:g} is below push.timeout_s={self.push.timeout_s:g}: "
                             "an engine's core answers nothing else during a push; raise hang_s, or lower timeout_s")
        return self

    @model_validator(mode="after")
    def _push_trips_no_collective(self) -> RunConfig:
        learner, push_s = self.learner, self.push.timeout_s
        if learner.tp * learner.pp > 1 and learner.collective_timeout_s <= push_s:
            raise ValueError(f"learner.collective_timeout_s={learner.collective_timeout_s:g} is not above "
                             f"push.timeout_s={push_s:g}, with learner.tp={learner.tp} and learner.pp={learner.pp}: "
                             "while an engine holds rank 0 up in a push, the others wait for it in the gather of the "
                             f"next weights; set learner.collective_timeout_s={1.1 * push_s:g}, or lower "
                             "push.timeout_s")
        return self

    @model_validator(mode="after")
    def _closed_loop_has_a_grid(self) -> RunConfig:
        budget, grid = self.budget, self.rollout.budget_grid
        if budget.schedule == "closed" and not any(budget.l_min <= at < budget.l_max for at in grid):
            raise ValueError(f"budget.schedule=closed with rollout.budget_grid={list(grid)}, nothing of which lies in "
                             f"l_min={budget.l_min}..l_max={budget.l_max}: L_min is chosen from the grid; add budgets")
        return self

    @model_validator(mode="after")
    def _launch_suits_the_rest(self) -> RunConfig:
        check_launch(self)
        return self

    @model_validator(mode="after")
    def _lag_is_not_reproducible(self) -> RunConfig:
        if self.reproducible and self.rollout.lag:
            raise ValueError(f"reproducible=true with rollout.lag={self.rollout.lag}: which weights a token is sampled "
                             "under then depends on when a push comes; set reproducible=false (a replay of the run's "
                             "ledger gives the same bits all the same), or rollout.lag=0")
        return self

    @model_validator(mode="after")
    def _rollouts_are_under_way(self) -> RunConfig:
        if self.evaluation.rollouts != "beside" and not self.rollout.lag:
            raise ValueError(f"evaluation.rollouts={self.evaluation.rollouts} with rollout.lag=0, where no rollouts "
                             "are under way when an evaluation comes: leave it out, or set rollout.lag=1")
        return self

    @model_validator(mode="after")
    def _forced_answers_are_not_cut(self) -> RunConfig:
        if self.rollout.lowered_cap == "cut" and self.reward.forced_text is not None:
            raise ValueError("rollout.lowered_cap=cut with forced answers, which need their reserve before the "
                             "end: set rollout.lowered_cap=drop, or keep")
        return self

    @model_validator(mode="after")
    def _phases_are_read(self) -> RunConfig:
        check_phases(self.phases, self.reward, self.algorithm, self.budget)
        return self


# What must match to resume: the model, the data and the method. Layout, machine and paths may change.
IDENTITY = ("seed", "reproducible", "data", "reward", "budget", "rollout", "optimizer", "algorithm", "phases",
            "batching")
# What may change all the same. The training prompts are in data.fingerprint, wherever they come from.
FREE = ("rollout.timeout_s", "data.train", "data.eval", "data.hub_timeout_s", "reward.timeout_s", "reward.workers",
        "reward.memory_gib", "reward.max_failed")


def identity_hash(config: RunConfig) -> str:
    """Hash of everything that must match between a checkpoint and the run that resumes from it."""
    dump = config.model_dump(mode="json")
    picked = {name: dump[name] for name in IDENTITY}
    picked["model"] = {"dtype": config.model.dtype, "fingerprint": config.model.fingerprint}
    for key in FREE:
        section, _, name = key.partition(".")
        picked[section].pop(name)
    return hashlib.sha256(json.dumps(picked, sort_keys=True).encode()).hexdigest()[:16]
