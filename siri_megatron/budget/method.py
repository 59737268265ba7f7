"""The method of a step: what of reward, advantage, clip, entropy bonus and learning rate follows the phase. Pure.

Rank 0 puts it into the step's plan, and learners read it there: so no rank can have another one, and what a checkpoint
holds of it (a learning rate in AdamW's state) never wins.

Why one would: under a tight cap nearly every answer of a group is wrong, and the group's deviation blows up the few
that are not, where the batch's does not (DLER, arXiv 2510.15110); on overlong answers the evidence conflicts (no mask:
SIRI, Skywork-OR1; filter: DAPO; a ramp does harm: JustRL), so it is a choice for each phase; and SIRI proposes, without
having tried it, to explore more in expansion.

Invariants:
- overrides_win: what `phases` gives for the phase holds, everything else is the run's.
- phase_decides: the method is a function of configuration and phase, so a resumed or replayed step has the same one.
- json_round_trip: `Method(**to_json())` is equal.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any

from siri_megatron.budget.step_budget import Phase
from siri_megatron.config import Advantage, AlgorithmConfig, OptimizerConfig, Overlong, RunConfig
from siri_megatron.learner.losses import POLICY_LOSSES


@dataclass(frozen=True)
class Method:
    """All values are effective ones: a clip bound is the configured one or the loss's own."""

    overlong: Overlong
    advantage: Advantage
    clip_low: float
    clip_high: float
    entropy_coef: float
    """Weight of the entropy bonus; with a target entropy, what the control starts from."""
    lr: float
    """Learning rate after the warm-up."""

    @classmethod
    def of(cls, algorithm: AlgorithmConfig, optimizer: OptimizerConfig, overlong: Overlong = "zero") -> Method:
        """The method of a run without overrides."""
        clip = POLICY_LOSSES[algorithm.loss].clip_of(algorithm)
        return cls(overlong, algorithm.advantage, clip.low, clip.high, algorithm.entropy_coef, optimizer.lr)

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    def changes(self, before: Method) -> str:
        """What is another one than before, for people; '' if nothing is."""
        now, old = self.to_json(), before.to_json()
        return ", ".join(f"{key} {_text(old[key])} to {_text(now[key])}" for key in now if now[key] != old[key])


def method_at(config: RunConfig, phase: Phase) -> Method:
    """The method of the steps of a phase."""
    overrides = {"compression": config.phases.compression, "expansion": config.phases.expansion}[phase]
    return replace(Method.of(config.algorithm, config.optimizer, config.reward.overlong),
                   **overrides.model_dump(exclude_none=True))


def _text(value: str | float) -> str:
    return value if isinstance(value, str) else f"{value:g}"
