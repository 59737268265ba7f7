"""What is optimised, and how it is cut into steps: rewards, policy loss, micro-batches."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from siri_megatron.config.base import Section


class RewardConfig(Section):
    verifier: Literal["exact", "math"] = "exact"
    """`exact`: the generated family's own answer format; `math`: math-verify in killable workers."""
    scope: Literal["all", "after_think", "boxed"] = "all"
    """Where an answer may stand: anywhere, after the closing think tag, or only in \\boxed{}."""
    timeout_s: float = Field(5.0, gt=0)
    """Seconds before a verification is killed and counted as `failed` (never as wrong)."""
    workers: int = Field(1, ge=1)
    """Verifier worker processes."""

    @model_validator(mode="after")
    def _scope_is_read(self) -> RewardConfig:
        if self.verifier == "exact" and self.scope != "all":
            raise ValueError(f"scope={self.scope} with verifier=exact, which reads the generated family's own format "
                             "wherever it stands: leave scope out, or set verifier=math")
        return self


class AlgorithmConfig(Section):
    loss: Literal["grpo", "dapo", "dr_grpo"] = "grpo"
    """Aggregation: grpo = sample mean of token means (as SIRI prints it), dapo = token mean, dr_grpo = constant."""
    advantage: Literal["group_std", "group_mean"] = "group_std"
    """(R - mean)/std within the group, or R - mean (Dr.GRPO)."""
    clip_low: float = Field(0.2, gt=0)
    """Lower clip range of the probability ratio."""
    clip_high: float = Field(0.28, gt=0)
    """Upper clip range of the probability ratio."""
    drop_uniform_groups: bool = True
    """Leave out groups whose rewards are all equal: their advantage is zero (DAPO's filter without refill)."""
    mini_batches: int = Field(2, ge=1)
    """Optimizer steps a rollout step: the groups are split into so many disjoint parts."""
    dr_grpo_tokens: int | None = None
    """dr_grpo: constant token denominator; None: l_max. It never follows the cap."""


class BatchingConfig(Section):
    mode: Literal["packed", "bucketed"] = "packed"
    """packed rows (thd), or padded length buckets (bshd) with few static shapes."""
    tokens_per_micro_batch: int = Field(4096, ge=1)
    """Token capacity of a micro-batch at the largest cap; the plan never exceeds it."""
    buckets: int = Field(4, ge=1)
    """bucketed: number of length buckets."""
