"""What the length rules read: one section a rule, `reward.<rule>.*` (docs/method.md has the formulas)."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from siri_megatron.config.base import Section


class DotConfig(Section):
    std_multiplier: float = Field(3.0, gt=0)
    """Responses of an all-right group are cut at floor(mean + this x standard deviation) of its lengths."""
    margin: int = Field(32, ge=1)
    """Fewest tokens by which a response must be longer than that to be cut."""


class LaserDConfig(Section):
    bonus: float = Field(0.5, gt=0)
    """Reward added to a right response that is no longer than the target of its difficulty."""
    every_steps: int = Field(20, ge=1)
    """The targets are estimated again after so many steps."""
    window: int = Field(4000, ge=1)
    """Newest responses of each difficulty that an estimate looks at (the paper: 500 prompts of 8)."""


class LeashConfig(Section):
    target_tokens: int | None = Field(None, ge=1)
    """Target length L_t in tokens; one of target_tokens and target_share is set."""
    target_share: float | None = Field(None, gt=0, le=1)
    """Target length as a share of the row's cap, so that it moves with the cap."""
    start: float = Field(0.1, ge=0)
    """First value of lambda, the weight of the penalty."""
    rate: float = Field(0.05, gt=0)
    """How far lambda moves in a step whose mean length is twice the target."""
    lowest: float = Field(0.0, ge=0)
    """Smallest lambda."""
    highest: float = Field(1.0, gt=0)
    """Largest lambda."""

    @model_validator(mode="after")
    def _ordered(self) -> LeashConfig:
        if not self.lowest <= self.start <= self.highest:
            raise ValueError(f"lowest={self.lowest:g}, start={self.start:g}, highest={self.highest:g}: lambda starts "
                             "within its range; correct one of them")
        if self.target_tokens is not None and self.target_share is not None:
            raise ValueError(f"target_tokens={self.target_tokens} and target_share={self.target_share:g}: there is one "
                             "target; leave one of them out")
        return self


class ProrlConfig(Section):
    highest: float = 0.0
    """Added to the reward of a response of length 0 (eta_max times the post's weight)."""
    lowest: float = -0.5
    """Added to the reward of a response as long as its cap (eta_min times the post's weight)."""
    on: Literal["cycle", "compression", "expansion"] = "cycle"
    """When the rule is at work: on_steps of every on_steps + off_steps, or in one kind of phase."""
    on_steps: int = Field(100, ge=1)
    """cycle: steps with the rule, first."""
    off_steps: int = Field(500, ge=0)
    """cycle: steps without it, then."""

    @model_validator(mode="after")
    def _meaningful(self) -> ProrlConfig:
        if self.lowest >= self.highest:
            raise ValueError(f"lowest={self.lowest:g} is not below highest={self.highest:g}: longer responses get "
                             "less; swap them")
        for key in ("on_steps", "off_steps"):
            if self.on != "cycle" and self.altered(key):
                raise ValueError(f"{key}={getattr(self, key)} with on={self.on}, which does not read it: leave {key} "
                                 "out, or set on=cycle")
        return self


RuleName = Literal["none", "dler", "dot", "laser_d", "leash", "prorl"]
SECTIONS = ("dot", "laser_d", "leash", "prorl")
"""Rules with keys of their own."""
DLER = {"advantage": "batch_std", "clip_low": 0.2, "clip_high": 0.28, "drop_uniform_groups": True}
"""What `length_rule: dler` makes of `algorithm.*` (arXiv 2510.15110, section 4): truncation is the cap rule itself."""
