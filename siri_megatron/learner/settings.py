"""What a learner needs to know, whichever command starts it. No torch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from siri_megatron.config import AlgorithmConfig, LearnerConfig, ModelConfig, OptimizerConfig, RunConfig
from siri_megatron.sft_config import SftConfig


@dataclass(frozen=True)
class LearnerSettings:
    """The parts of a run's configuration that reach the learner."""

    model: ModelConfig
    layout: LearnerConfig
    optimizer: OptimizerConfig
    algorithm: AlgorithmConfig
    temperature: float
    """Logits are divided by it before the log-softmax, as the engines do when they sample."""
    mode: Literal["packed", "bucketed"]
    """Shape of the micro-batches that the learner cuts itself (log-probs, sft); a plan brings its own."""
    tokens_per_micro_batch: int
    context: int
    """Longest sequence, tokens."""
    seed: int

    @classmethod
    def of_run(cls, config: RunConfig) -> LearnerSettings:
        return cls(config.model, config.learner, config.optimizer, config.algorithm, config.rollout.temperature,
                   config.batching.mode, config.batching.tokens_per_micro_batch,
                   config.data.max_prompt_tokens + config.budget.l_max, config.seed)

    @classmethod
    def of_sft(cls, config: SftConfig, model_dir: Path) -> LearnerSettings:
        """`model_dir`: the directory to start from (written first if the model is initialised from scratch)."""
        context = config.data.max_prompt_tokens + config.max_response_tokens
        return cls(ModelConfig(path=model_dir), config.learner, config.optimizer, AlgorithmConfig(), 1.0, "packed",
                   config.tokens_per_micro_batch, context, config.seed)
