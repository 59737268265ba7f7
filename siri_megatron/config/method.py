"""What is optimised, and how it is cut into steps: rewards, policy loss, micro-batches."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from siri_megatron.config.base import Section
from siri_megatron.config.rules import SECTIONS, DotConfig, LaserDConfig, LeashConfig, ProrlConfig, RuleName

Overlong = Literal["zero", "mask", "soft", "forced"]
Advantage = Literal["group_std", "group_mean", "batch_std", "leave_one_out"]
Scope = Literal["all", "after_think", "boxed"]


class RewardConfig(Section):
    verifier: Literal["exact", "math", "custom"] = "exact"
    """`exact`: the generated family's own answer format; `math`: math-verify; `custom`: your own function."""
    custom: str | None = None
    """custom: `package.module:function` or `path/to/file.py:function`, (prompt, reference, response) -> reward."""
    scope: Scope = "all"
    """Where an answer may stand: anywhere, after the closing think tag, or only in \\boxed{}."""
    timeout_s: float = Field(5.0, gt=0)
    """math, custom: seconds before a verification is killed and counted as `failed` (never as wrong)."""
    workers: int = Field(1, ge=1)
    """math, custom: verifier worker processes."""
    memory_gib: float = Field(2.0, gt=0.5)
    """math, custom: address space of a worker, GiB; a verification that needs more counts as `failed`."""
    max_failed: float = Field(0.05, ge=0, le=1)
    """Share of a step's samples without a verdict above which the event `verifier_alarm` is written."""
    overlong: Overlong = "zero"
    """Samples that do not end within the cap: worth 0 (SIRI), left out, a soft ramp before it, or a forced answer."""
    overlong_buffer: float = Field(0.2, gt=0, le=1)
    """soft: share of the cap over which the reward falls by up to 1 (DAPO's 4096 of 20480)."""
    forced_text: str | None = None
    """forced: what is appended to a response that has not ended `forced_reserve` tokens before the cap."""
    forced_reserve: int | None = Field(None, ge=2)
    """forced: tokens of the cap that are kept for the forced text and the answer after it."""
    length_rule: RuleName = "none"
    """What length does to the reward beyond the cap (docs/method.md); each rule reads its own section alone."""
    dot: DotConfig = DotConfig()
    laser_d: LaserDConfig = LaserDConfig()
    leash: LeashConfig = LeashConfig()
    prorl: ProrlConfig = ProrlConfig()

    @model_validator(mode="after")
    def _rule_is_read(self) -> RewardConfig:
        for name in SECTIONS:
            if self.length_rule != name and self.altered(name):
                raise ValueError(f"{name} is set with length_rule={self.length_rule}, which does not read it: leave "
                                 f"{name} out, or set length_rule={name}")
        if self.length_rule == "leash" and self.leash.target_tokens is None and self.leash.target_share is None:
            raise ValueError("length_rule=leash without a target: it steers to a length; set leash.target_share=0.5 or "
                             "leash.target_tokens")
        return self

    @model_validator(mode="after")
    def _scope_is_read(self) -> RewardConfig:
        if self.verifier == "exact" and self.scope != "all":
            raise ValueError(f"scope={self.scope} with verifier=exact, which reads the generated family's own format "
                             "wherever it stands: leave scope out, or set verifier=math")
        if self.verifier == "custom" and self.scope != "all":
            raise ValueError(f"scope={self.scope} with verifier=custom, whose function gets the whole response: "
                             "leave scope out")
        return self

    @model_validator(mode="after")
    def _workers_are_read(self) -> RewardConfig:
        for key in ("timeout_s", "workers", "memory_gib"):
            if self.verifier == "exact" and self.altered(key):
                raise ValueError(f"{key}={getattr(self, key):g} is never read with verifier=exact, which needs no "
                                 f"worker processes: leave {key} out, or set verifier=math")
        return self

    @model_validator(mode="after")
    def _custom_is_read(self) -> RewardConfig:
        if self.verifier == "custom" and self.custom is None:
            raise ValueError("verifier=custom without custom=...: name the function, e.g. custom=rewards.py:score")
        if self.verifier != "custom" and self.custom is not None:
            raise ValueError(f"custom={self.custom} with verifier={self.verifier}, which does not call it: "
                             "leave custom out, or set verifier=custom")
        return self


class AlgorithmConfig(Section):
    loss: Literal["grpo", "dapo", "dr_grpo", "gspo", "cispo"] = "grpo"
    """Surrogate and aggregation: grpo = as SIRI prints it, dapo, dr_grpo, gspo, cispo (docs/method.md)."""
    advantage: Advantage = "group_std"
    """(R - mean)/std of the group, R - mean (Dr.GRPO), (R - mean)/std of the batch (DLER), R - mean of the others."""
    clip_low: float | None = Field(None, gt=0)
    """Lower clip range of the probability ratio; None: the loss's own (0.2; gspo 3e-4; cispo none)."""
    clip_high: float | None = Field(None, gt=0)
    """Upper clip range; None: the loss's own (0.28 grpo, dapo; 0.2 dr_grpo; 4e-4 gspo; 4 cispo)."""
    drop_uniform_groups: bool = True
    """Leave out groups whose rewards are all equal, for their advantage is 0 (rollout.max_refill replaces them)."""
    mini_batches: int = Field(2, ge=1)
    """Optimizer steps a rollout step: the groups are split into so many disjoint parts."""
    dr_grpo_tokens: int | None = Field(None, ge=1)
    """dr_grpo: constant token denominator; None: l_max. It never follows the cap."""
    kl_coef: float = Field(0.0, ge=0)
    """Weight of the KL term against the starting weights; 0: no term, no reference copy, no pass."""
    kl_estimator: Literal["k1", "k2", "k3"] = "k3"
    """Estimator of the KL at the sampled tokens (Schulman): k1 = -d, k2 = d^2/2, k3 = exp(d) - 1 - d."""
    entropy_coef: float = Field(0.0, ge=0)
    """Weight of the entropy bonus; with entropy_target, the weight that the control starts from."""
    entropy_target: float | None = Field(None, gt=0)
    """Entropy, nats a token, that the bonus's weight is steered to; None: the weight stays entropy_coef."""
    entropy_delta: float = Field(0.005, gt=0)
    """entropy_target: the weight moves up or down by this after each step."""
    old_logprobs: Literal["bypass", "decoupled"] = "bypass"
    """Old policy of the ratio: the engines' log-probs, or recomputed by the learner before the first update."""
    correction: Literal["none", "tis", "mask", "sequence"] = "none"
    """decoupled: correction of rho = learner/engine probability (docs/method.md)."""
    correction_low: float | None = Field(None, gt=0, lt=1)
    """mask, sequence: smallest rho that is kept; None: 0.5 (mask), 0.999 (sequence: geometric mean)."""
    correction_high: float | None = Field(None, gt=1)
    """Largest rho: tis cuts there (None: 2), mask and sequence drop above it (None: 5; 1.001)."""

    @model_validator(mode="after")
    def _every_key_is_read(self) -> AlgorithmConfig:
        """A key that the other keys make meaningless is refused, not ignored."""
        for key, read, reason, fix in (
                ("dr_grpo_tokens", self.loss == "dr_grpo", f"loss={self.loss} has no constant denominator",
                 "loss=dr_grpo"),
                ("kl_estimator", self.kl_coef > 0, f"kl_coef={self.kl_coef} leaves out the KL term", "kl_coef=0.001"),
                ("entropy_delta", self.entropy_target is not None, "entropy_target=None: the weight does not move",
                 "entropy_target"),
                ("correction", self.old_logprobs == "decoupled",
                 f"old_logprobs={self.old_logprobs} takes the engine for the old policy: rho is 1, and the clip "
                 "bounds the whole ratio", "old_logprobs=decoupled"),
                ("correction_low", self.correction in ("mask", "sequence"),
                 f"correction={self.correction} has no lower bound", "correction=mask or sequence"),
                ("correction_high", self.correction != "none", f"correction={self.correction} looks at no rho",
                 "correction=tis, mask or sequence")):
            if self.altered(key) and not read:
                raise ValueError(f"{key}={getattr(self, key)} is never read, for {reason}: leave {key} out, "
                                 f"or set {fix}")
        return self


class BatchingConfig(Section):
    mode: Literal["packed", "bucketed"] = "packed"
    """packed rows (thd), or padded length buckets (bshd) with few static shapes."""
    tokens_per_micro_batch: int = Field(4096, ge=1)
    """Token capacity of a micro-batch at the largest cap; no cap's micro-batches take more memory than these."""
    buckets: int = Field(4, ge=1)
    """bucketed: number of length buckets."""

    @model_validator(mode="after")
    def _buckets_are_read(self) -> BatchingConfig:
        if self.mode == "packed" and self.altered("buckets"):
            raise ValueError(f"buckets={self.buckets} is never read with mode=packed, whose rows have one width: leave "
                             "buckets out, or set mode=bucketed")
        return self
