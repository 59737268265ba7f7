"""How a length rule goes together with the rest of a run's configuration."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

from siri_megatron.config.method import AlgorithmConfig, RewardConfig
from siri_megatron.config.phases import PhasesConfig
from siri_megatron.config.rollout import RolloutConfig
from siri_megatron.config.rules import DLER


def with_dler(raw: Mapping[str, Any]) -> Mapping[str, Any]:
    """`reward.length_rule: dler` fills in the rest of its recipe where nothing else is said. raw: a run's sections."""
    reward, algorithm = raw.get("reward"), raw.get("algorithm", {})
    if not isinstance(reward, Mapping) or not isinstance(algorithm, Mapping) or reward.get("length_rule") != "dler":
        return raw
    return {**raw, "algorithm": {**DLER, **algorithm}}


def check_length_rule(reward: RewardConfig, algorithm: AlgorithmConfig, phases: PhasesConfig,
                      rollout: RolloutConfig) -> None:
    """Raises ValueError if a rule's recipe is contradicted, or a rule could never do anything."""
    if reward.length_rule == "dler":
        _check_dler(reward, algorithm, phases)
    if reward.length_rule == "dot":
        _check_dot(rollout.samples_per_prompt, reward.dot.std_multiplier)


def _check_dler(reward: RewardConfig, algorithm: AlgorithmConfig, phases: PhasesConfig) -> None:
    for section, key, value, own in _against_dler(reward, algorithm, phases):
        raise ValueError(f"reward.length_rule=dler with {section}.{key}={value}: DLER is truncation with {key}={own}; "
                         f"leave {section}.{key} out, or length_rule")
    if algorithm.loss in ("gspo", "cispo"):
        raise ValueError(f"reward.length_rule=dler with algorithm.loss={algorithm.loss}, whose clip is of another "
                         "kind: DLER clips each token's ratio; use loss=grpo, dapo or dr_grpo")


def _against_dler(reward: RewardConfig, algorithm: AlgorithmConfig, phases: PhasesConfig
                  ) -> Iterator[tuple[str, str, Any, Any]]:
    """(section, key, value, DLER's) of what is not DLER's; a phase says nothing where it has None."""
    if reward.overlong != "zero":
        yield "reward", "overlong", reward.overlong, "zero"
    for key, own in DLER.items():
        if (given := getattr(algorithm, key)) != own:
            yield "algorithm", key, given, own
    for name, phase in (("compression", phases.compression), ("expansion", phases.expansion)):
        for key, own in {"overlong": "zero", **DLER}.items():
            if (given := getattr(phase, key, None)) not in (None, own):
                yield f"phases.{name}", key, given, own


def _check_dot(size: int, multiplier: float) -> None:
    if (reach := (size - 1) / math.sqrt(size)) <= multiplier:
        raise ValueError(f"reward.dot.std_multiplier={multiplier:g} with rollout.samples_per_prompt={size}: of {size} "
                         f"lengths none lies more than (G - 1)/sqrt(G) = {reach:.2f} deviations above their mean, so "
                         "nothing is ever cut; raise samples_per_prompt (3 needs 11), or lower std_multiplier")
