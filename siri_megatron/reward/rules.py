"""The length rules by name. To add one, add an entry here (and its name and keys to `config.rules`)."""

from __future__ import annotations

from collections.abc import Callable

from siri_megatron.config import RunConfig
from siri_megatron.reward.laser_d import LaserD
from siri_megatron.reward.leash import Leash
from siri_megatron.reward.length_rule import LengthRule
from siri_megatron.reward.prorl import Prorl

LENGTH_RULES: dict[str, Callable[[RunConfig], LengthRule]] = {
    "none": lambda config: LengthRule(),
    "dler": lambda config: LengthRule(),  # arXiv 2510.15110: the cap rule, and keys of `algorithm` (config.rules.DLER)
    "dot": lambda config: LengthRule(),  # arXiv 2601.03969: cuts responses when a group is finished (`reward.dot`)
    "laser_d": lambda config: LaserD(config.reward.laser_d, config.rollout.samples_per_prompt),  # arXiv 2505.15612
    "leash": lambda config: Leash(config.reward.leash),  # arXiv 2512.21540
    "prorl": lambda config: Prorl(config.reward.prorl),  # ProRL v2 (August 2025)
}


def length_rule_of(config: RunConfig) -> LengthRule:
    """The rule of a run, at its starting state."""
    return LENGTH_RULES[config.reward.length_rule](config)
