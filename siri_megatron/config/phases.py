"""What a phase changes of the method: some keys of `reward`, `algorithm` and `optimizer`, for its steps only."""

from __future__ import annotations

from itertools import pairwise

from pydantic import Field

from siri_megatron.config.base import Section
from siri_megatron.config.budget import BudgetConfig
from siri_megatron.config.method import Advantage, AlgorithmConfig, Overlong, RewardConfig


class PhaseOverrides(Section):
    """One phase. A key that is left out is what its own section says."""

    overlong: Overlong | None = None
    """`reward.overlong` in this phase."""
    advantage: Advantage | None = None
    """`algorithm.advantage` in this phase."""
    clip_low: float | None = Field(None, gt=0)
    """`algorithm.clip_low` in this phase."""
    clip_high: float | None = Field(None, gt=0)
    """`algorithm.clip_high` in this phase."""
    entropy_coef: float | None = Field(None, ge=0)
    """`algorithm.entropy_coef` in this phase; not together with `algorithm.entropy_target`."""
    lr: float | None = Field(None, gt=0)
    """`optimizer.lr` in this phase; the warm-up goes on over the phases, as a share of whichever holds."""


class PhasesConfig(Section):
    compression: PhaseOverrides = PhaseOverrides()
    expansion: PhaseOverrides = PhaseOverrides()


def check_phases(phases: PhasesConfig, reward: RewardConfig, algorithm: AlgorithmConfig, budget: BudgetConfig) -> None:
    """Raises ValueError if a key is never read, or lacks what it needs, in the phases that the run has."""
    for name, phase in (("compression", phases.compression), ("expansion", phases.expansion)):
        if phase.entropy_coef is not None and algorithm.entropy_target is not None:
            raise ValueError(f"phases.{name}.entropy_coef={phase.entropy_coef} with algorithm.entropy_target="
                             f"{algorithm.entropy_target}, which steers the weight from step to step: leave one out")
    expands = _expands(budget)
    if not expands and (given := phases.expansion.model_dump(exclude_none=True)):
        raise ValueError(f"phases.expansion.{next(iter(given))} is never read, for no stage of budget.stages has a "
                         "higher cap than the one before: leave it out, or raise a stage")
    used = {phase.overlong or reward.overlong for phase in (phases.compression, phases.expansion)[: 1 + expands]}
    _check_overlong(used, reward, budget)


def _check_overlong(used: set[Overlong], reward: RewardConfig, budget: BudgetConfig) -> None:
    for key, rule in (("overlong_buffer", "soft"), ("forced_text", "forced"), ("forced_reserve", "forced")):
        if reward.altered(key) and rule not in used:
            raise ValueError(f"reward.{key}={getattr(reward, key)!r} is never read, for overlong is "
                             f"{' and '.join(sorted(used))}: leave it out, or set reward.overlong={rule}")
    if "forced" in used:
        _check_forced(reward, budget)


def _check_forced(reward: RewardConfig, budget: BudgetConfig) -> None:
    if reward.forced_text is None or reward.forced_reserve is None:
        raise ValueError(f"overlong=forced with reward.forced_text={reward.forced_text!r}, reward.forced_reserve="
                         f"{reward.forced_reserve}: it needs both; for example '</think>' and 64 tokens")
    smallest = min(budget.l_min, budget.prompt_caps.floor or budget.l_min)
    if reward.forced_reserve >= smallest:
        raise ValueError(f"reward.forced_reserve={reward.forced_reserve} of a smallest cap of {smallest} tokens, which "
                         "leaves nothing before the forced text; lower forced_reserve")
    if budget.schedule == "closed":
        raise ValueError("overlong=forced with budget.schedule=closed, which chooses caps by J(B) and truncation: a "
                         "forced answer hides the one, and clipped to B it is not what B would have given; take zero")


def _expands(budget: BudgetConfig) -> bool:
    return budget.schedule != "staged" or any(after > before for (_, before), (_, after) in pairwise(budget.stages))
