"""Rotary settings of a `config.json` in one spelling. No torch; the tables are made in `rotary`.

The kinds are those of transformers (`modeling_rope_utils`), with its defaults:

    default   angles as trained
    linear    positions divided by `factor`
    llama3    low frequencies divided by `factor`, high ones kept, between them interpolated (Llama 3.1)
    yarn      the same by counting rotations, and attention logits scaled up (arXiv 2309.00071)

Invariants:
- both_spellings: `rope_parameters` (transformers 5) and `rope_theta` with `rope_scaling` (4) say the same; where a
  config.json has both and they differ, it is refused.
- refused_by_name: another kind, a setting that the kind does not have, or a wrong value is refused by its name.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from siri_megatron.errors import ConfigError
from siri_megatron.learner.fields import Fields

Kind = Literal["default", "linear", "llama3", "yarn"]

# The settings that each kind has. Any other one is refused, even where transformers would only warn.
SETTINGS: dict[Kind, frozenset[str]] = {
    "default": frozenset(),
    "linear": frozenset({"factor"}),
    "llama3": frozenset({"factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"}),
    "yarn": frozenset({"factor", "beta_fast", "beta_slow", "original_max_position_embeddings", "attention_factor",
                       "mscale", "mscale_all_dim", "truncate"}),
}
COMMON = frozenset({"rope_type", "type", "rope_theta"})
DEFAULT_BASE = 10000.0


@dataclass(frozen=True)
class Rope:
    """How positions turn queries and keys. Fields that a kind does not have keep their defaults."""

    kind: Kind = "default"
    base: float = DEFAULT_BASE
    """rope_theta"""
    factor: float = 1.0
    original_positions: int = 0
    """original_max_position_embeddings: the context that the model was trained with before scaling."""
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    beta_fast: float = 32.0
    """Dimensions that turn more often than this within the original context are not scaled."""
    beta_slow: float = 1.0
    """Dimensions that turn less often than this are scaled by the whole factor."""
    truncate: bool = True
    """Round the range between the two to whole dimensions."""
    attention_factor: float = 1.0
    """Multiplies cosines and sines, hence attention logits by its square."""


def read_rope(config: Mapping[str, Any], max_positions: int) -> Rope:
    """The rotary settings of a `config.json`.

    Raises:
        ConfigError: names the setting, its value and the rule.
    """
    found = _spelling(config)
    kind = _kind(found)
    base = found.number("rope_theta", Fields(config).number("rope_theta", DEFAULT_BASE))
    if base != Fields(config).number("rope_theta", base):
        raise found.refusal("rope_theta", base, f"is that of the top level, {config['rope_theta']}")
    if kind == "default":
        return Rope(base=base)
    factor = found.number("factor", least=1.0)
    if kind == "linear":
        return _linear(found, base, factor)
    # transformers gives a value at the top level precedence, and takes the whole context where there is none.
    original = Fields(config).size("original_max_position_embeddings",
                                   found.size("original_max_position_embeddings", max_positions))
    if kind == "llama3":
        return _llama3(found, base, factor, original)
    return _yarn(found, base, factor, original, max_positions)


def _spelling(config: Mapping[str, Any]) -> Fields:
    """The mapping that holds the settings, under whichever name."""
    new, old = (Fields(config).mapping(name) for name in ("rope_parameters", "rope_scaling"))
    if new.values and old.values and dict(new.values) != dict(old.values):
        raise ConfigError(f"config.json has rope_parameters={dict(new.values)} and rope_scaling={dict(old.values)}",
                          rule="one spelling of the rotary settings, or both the same",
                          fix="keep rope_parameters (transformers 5), or rope_theta and rope_scaling (transformers 4)")
    return old if old.values else new


def _kind(found: Fields) -> Kind:
    kind = found.values.get("rope_type") or found.values.get("type") or "default"
    if not isinstance(kind, str) or kind not in SETTINGS:
        raise found.refusal("rope_type", kind, f"is one of {', '.join(SETTINGS)}",
                            "start from a model with one of these rotary tables")
    for name, value in found.values.items():
        if value is not None and name not in COMMON | SETTINGS[kind] and (name, value) != ("partial_rotary_factor", 1):
            known = ", ".join(sorted(SETTINGS[kind])) or "no other setting"
            raise found.refusal(name, value, f"is not a setting of rope_type {kind} ({known})",
                                f"take {name} out of config.json, or start from a model without it")
    return kind


def _linear(found: Fields, base: float, factor: float) -> Rope:
    if isinstance(found.values["factor"], int):
        raise found.refusal("factor", found.values["factor"], "of linear scaling is written with a decimal point (vLLM "
                            "takes a whole number for a list of factors and does not start)", f"write {factor}")
    return Rope("linear", base, factor)


def _llama3(found: Fields, base: float, factor: float, original: int) -> Rope:
    low, high = found.number("low_freq_factor"), found.number("high_freq_factor")
    if high <= low:
        raise found.refusal("high_freq_factor", high, f"is above low_freq_factor={low}")
    return Rope("llama3", base, factor, original, low_freq_factor=low, high_freq_factor=high)


def _yarn(found: Fields, base: float, factor: float, original: int, max_positions: int) -> Rope:
    fast, slow = found.number("beta_fast", 32.0), found.number("beta_slow", 1.0)
    if fast < slow:
        raise found.refusal("beta_fast", fast, f"is at least beta_slow={slow}")
    if max_positions > original * factor:
        raise ConfigError(f"max_position_embeddings={max_positions} in config.json, but yarn reaches factor {factor:g} "
                          f"x original_max_position_embeddings {original} = {original * factor:g} positions",
                          rule="max_position_embeddings <= factor x original_max_position_embeddings "
                               "(vLLM's rotary table ends there)",
                          fix=f"set max_position_embeddings to {int(original * factor)}")
    return Rope("yarn", base, factor, original, beta_fast=fast, beta_slow=slow, truncate=found.flag("truncate", True),
                attention_factor=_attention_factor(found, factor))


def _attention_factor(found: Fields, factor: float) -> float:
    """As the config says it, else from mscale and mscale_all_dim (both or neither), else the paper's."""
    if found.values.get("attention_factor") is not None:
        return found.number("attention_factor")
    if found.values.get("mscale") and found.values.get("mscale_all_dim"):
        return _scale(factor, found.number("mscale")) / _scale(factor, found.number("mscale_all_dim"))
    return _scale(factor, 1.0)


def _scale(factor: float, mscale: float) -> float:
    return 0.1 * mscale * math.log(factor) + 1.0 if factor > 1 else 1.0
