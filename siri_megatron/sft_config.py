"""The configuration of `siri sft`: supervised warm start of the tiny model. Same style as `config/`; no torch."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field, ValidationError, model_validator

from siri_megatron.config import (
    DataConfig,
    LearnerConfig,
    OptimizerConfig,
    RunName,
    Section,
    apply_overrides,
    describe,
    read_yaml,
)
from siri_megatron.data.families import FAMILIES, Family
from siri_megatron.errors import ConfigError


class InitConfig(Section):
    """Architecture of a Qwen2-type model with tied embeddings, initialised from scratch (vocabulary: the task's)."""

    hidden_size: int = Field(128, ge=8)
    """Width of the residual stream."""
    layers: int = Field(2, ge=1)
    """Number of decoder layers."""
    heads: int = Field(4, ge=1)
    """Attention heads; each is hidden_size/heads wide."""
    kv_heads: int = Field(2, ge=1)
    """Key-value heads; a divisor of heads."""
    ffn_size: int = Field(256, ge=8)
    """Width of the gated MLP."""
    max_positions: int = Field(1024, ge=64)
    """Context length written into config.json."""
    embedding_std: float = Field(0.1, gt=0)
    """Standard deviation of the tied embedding; 0.02 learns addition far more slowly at this width."""
    residual_gain: float = Field(0.5, gt=0)
    """Gain of the projections into the residual stream; all projections have std gain/sqrt(fan_in)."""

    @model_validator(mode="after")
    def _divisible(self) -> InitConfig:
        if self.hidden_size % self.heads or self.heads % self.kv_heads:
            raise ValueError(f"hidden_size={self.hidden_size}, heads={self.heads}, kv_heads={self.kv_heads}: "
                             "hidden_size must be a multiple of heads, heads of kv_heads")
        return self


class StageConfig(Section):
    """A stage of the curriculum: who teaches, for how long, at which learning rate."""

    teacher: Literal["clean", "noisy"]
    """Preset of the teacher: correct verbose reasoning, or the same with slips."""
    steps: int = Field(ge=1)
    """Optimizer steps."""
    tokens_per_step: int = Field(ge=64)
    """Tokens (prompt and response) a step; the last sequence may reach over it."""
    lr_scale: float = Field(1.0, gt=0)
    """Peak learning rate of the stage, as a multiple of optimizer.lr."""
    final_lr_scale: float = Field(0.1, ge=0)
    """Learning rate at the end of the stage's cosine decay, as a fraction of its peak."""
    content_weight: float = Field(1.0, gt=0)
    """Weight of digits, labels and the answer mark relative to the other response tokens, which are mere style."""


class SftConfig(Section):
    """One supervised run."""

    name: RunName
    """Name of the run: its directory is runs_dir/name."""
    runs_dir: Path = Path("runs")
    """Directory of the runs."""
    seed: int = 1
    """Seed of the initial weights and of every batch."""
    init: InitConfig | None = None
    """Start from random weights of this architecture."""
    model_path: Path | None = None
    """Start from this Hugging Face directory."""
    output: Path
    """Directory that the trained model is written to (Hugging Face format, with the tokenizer)."""
    data: DataConfig = DataConfig()
    learner: LearnerConfig = LearnerConfig()
    optimizer: OptimizerConfig
    """Its lr is the peak; warmup_steps holds at the start of every stage."""
    stages: tuple[StageConfig, ...] = Field(min_length=1)
    """The curriculum, in order."""
    max_response_tokens: int = Field(256, ge=8)
    """Longer teacher responses are redrawn."""
    tokens_per_micro_batch: int = Field(4096, ge=64)
    """Token capacity of a micro-batch."""
    log_every: int = Field(25, ge=1)
    """Steps between two lines of progress."""

    @property
    def steps(self) -> int:
        return sum(stage.steps for stage in self.stages)

    @property
    def family(self) -> Family:
        """The generated task that is taught."""
        return next(family for name, family in FAMILIES.items() if name == self.data.source)

    @property
    def run_dir(self) -> Path:
        return self.runs_dir / self.name

    @model_validator(mode="after")
    def _one_start(self) -> SftConfig:
        if (self.init is None) == (self.model_path is None):
            raise ValueError("give exactly one of init (an architecture) and model_path (a directory)")
        if self.data.source not in FAMILIES:
            raise ValueError(f"data.source={self.data.source}: there is a teacher only of {', '.join(FAMILIES)}")
        return self


def load_sft(path: Path, overrides: list[str] | None = None) -> SftConfig:
    """Read, override, validate.

    Raises:
        ConfigError: the file is missing or not YAML, an override is malformed, a key is unknown or out of range.
    """
    try:
        return SftConfig.model_validate(apply_overrides(read_yaml(path), overrides or []))
    except ValidationError as error:
        raise ConfigError(f"{path}: " + describe(error), rule="keys, types and ranges as in sft_config.py",
                          fix="correct the keys named above") from None
