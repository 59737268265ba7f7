"""How dynamic sampling goes together with the rest of a run's configuration."""

from __future__ import annotations

from siri_megatron.config.method import AlgorithmConfig, RewardConfig
from siri_megatron.config.rollout import RolloutConfig

HISTORY = 4
"""Consumed steps from which dynamic sampling estimates how many groups carry a signal: few, for a moving cap moves the
share too."""
KNOWN_WHEN_COLLECTED = ("none", "dler", "dot")
"""Length rules under which a group's rewards are final once it is collected, but for overlong handling."""


def check_refill(rollout: RolloutConfig, reward: RewardConfig, algorithm: AlgorithmConfig) -> None:
    """Raises ValueError if groups are to be replaced, but nobody can tell which, or none ever is."""
    if not rollout.max_refill:
        return
    given = f"rollout.max_refill={rollout.max_refill:g}"
    if not algorithm.drop_uniform_groups:
        raise ValueError(f"{given} with algorithm.drop_uniform_groups=false, which trains on groups without a signal: "
                         "nothing is to be replaced; leave one of them out")
    if reward.length_rule not in KNOWN_WHEN_COLLECTED:
        raise ValueError(f"{given} with reward.length_rule={reward.length_rule}: whether a group carries a signal is "
                         "asked when it is collected, this rule shapes rewards later; take length_rule=none, dler or "
                         "dot, or leave max_refill out")
    if rollout.max_refill * rollout.prompts_per_step < 1:
        raise ValueError(f"{given} of rollout.prompts_per_step={rollout.prompts_per_step} is less than one group: "
                         f"raise max_refill to {1 / rollout.prompts_per_step:g} or more, or leave it out")


def check_history(rollout: RolloutConfig, kept: int) -> None:
    """Raises ValueError if a resumed run would lack steps that dynamic sampling estimates from."""
    if rollout.max_refill and kept < (needed := HISTORY + rollout.lag):
        raise ValueError(f"checkpoint.keep_ledger={kept} with rollout.max_refill={rollout.max_refill:g} and "
                         f"rollout.lag={rollout.lag}: how many groups are sent at once follows from {HISTORY} consumed "
                         f"steps; set keep_ledger={needed} or more")
