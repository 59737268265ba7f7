"""What a Hugging Face `config.json` says about the model, checked against what the learners can run. No torch.

Invariants:
- refused_by_name: a family or feature that is not supported is refused with the field's name and value.
- both_spellings: rotary settings are read from `rope_parameters` (transformers 5) and `rope_theta`/`rope_scaling` (4).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from siri_megatron.errors import ConfigError, ModelError

FAMILIES = ("llama", "qwen2", "qwen3")

# Field -> values that mean what the learners compute; an absent field counts as None.
PLAIN: dict[str, tuple[Any, ...]] = {
    "hidden_act": ("silu",),
    "attention_bias": (None, False),
    "mlp_bias": (None, False),
    "use_sliding_window": (None, False),
    "attention_dropout": (None, 0.0),
    "partial_rotary_factor": (None, 1.0),
    "quantization_config": (None,),
}

# The one variant of llama3 rotary scaling that megatron-core computes (RotaryEmbedding._apply_scaling).
LLAMA3_ROPE = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}


@dataclass(frozen=True)
class Architecture:
    """A dense decoder with rotary positions, grouped-query attention, RMSNorm and a gated SiLU MLP."""

    family: str
    layers: int
    hidden: int
    heads: int
    groups: int
    """Query groups: key-value heads."""
    head_dim: int
    ffn: int
    vocab: int
    max_positions: int
    norm_eps: float
    rope_base: float
    rope_factor: float | None
    """llama3 rotary scaling, or None."""
    tied: bool
    """The output layer is the embedding."""

    @property
    def qkv_bias(self) -> bool:
        return self.family == "qwen2"

    @property
    def qk_norm(self) -> bool:
        return self.family == "qwen3"

    def padded_vocab(self, tp: int) -> int:
        """Rows of the embedding inside Megatron: the vocabulary rounded up to a multiple of tp."""
        return -(-self.vocab // tp) * tp

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> Architecture:
        """Read the fields of a `config.json`.

        Raises:
            ConfigError: a family, feature or field that the learners cannot run; names field and value.
        """
        _check_supported(config)
        heads, hidden = _size(config, "num_attention_heads"), _size(config, "hidden_size")
        rope = _rope(config)
        return cls(
            family=config["model_type"], layers=_size(config, "num_hidden_layers"), hidden=hidden, heads=heads,
            groups=config.get("num_key_value_heads") or heads, head_dim=config.get("head_dim") or hidden // heads,
            ffn=_size(config, "intermediate_size"), vocab=_size(config, "vocab_size"),
            max_positions=_size(config, "max_position_embeddings"), norm_eps=float(config.get("rms_norm_eps", 1e-6)),
            rope_base=float(rope.get("rope_theta", 10000.0)), rope_factor=rope.get("factor"),
            tied=bool(config.get("tie_word_embeddings", False)))


def read_config(model_dir: Path) -> dict[str, Any]:
    """The `config.json` of a Hugging Face directory.

    Raises:
        ModelError: the directory or the file is missing, or it is not a JSON mapping.
    """
    path = model_dir / "config.json"
    if not path.is_file():
        raise ModelError(f"model.path={model_dir} has no config.json", rule="a Hugging Face model directory",
                         fix="give the directory that holds config.json and *.safetensors")
    try:
        config = json.loads(path.read_text())
    except ValueError as error:
        raise ModelError(f"{path} is not JSON: {error}", fix="copy the model directory again") from None
    if not isinstance(config, dict):
        raise ModelError(f"{path} holds a {type(config).__name__}, not a mapping", fix="copy the directory again")
    return config


def _check_supported(config: Mapping[str, Any]) -> None:
    family = config.get("model_type")
    if family not in FAMILIES:
        raise ConfigError(f"model_type={family!r} is not a family that the learners know",
                          rule=f"model_type is one of {', '.join(FAMILIES)}",
                          fix="start from a model of one of these families")
    for field, allowed in PLAIN.items():
        if config.get(field) not in allowed:
            raise ConfigError(f"{field}={config.get(field)!r} in the config.json of this {family} is not supported",
                              rule=f"{field} is {' or '.join(map(repr, allowed))} (None: absent)",
                              fix="start from a model without this feature")
    other = sorted(set(config.get("layer_types") or ()) - {"full_attention"})
    if other:
        raise ConfigError(f"layer_types holds {', '.join(other)}", rule="every layer is full_attention",
                          fix="start from a model without windowed or linear layers")


def _size(config: Mapping[str, Any], field: str) -> int:
    value = config.get(field)
    if not isinstance(value, int) or value < 1:
        raise ConfigError(f"{field}={value!r} in config.json", rule=f"{field} is a positive whole number",
                          fix="copy the model directory again")
    return value


def _rope(config: Mapping[str, Any]) -> dict[str, Any]:
    """Rotary settings in one spelling: rope_theta, and `factor` for llama3 scaling."""
    rope = dict(config.get("rope_parameters") or config.get("rope_scaling") or {})
    kind = rope.get("rope_type", rope.get("type", "default"))
    theta = rope.get("rope_theta", config.get("rope_theta", 10000.0))
    if kind == "default":
        return {"rope_theta": theta}
    different = {key: rope.get(key) for key, value in LLAMA3_ROPE.items() if rope.get(key) != value}
    if kind != "llama3" or different:
        raise ConfigError(f"rotary scaling {kind!r} with {different or rope} is not supported",
                          rule=f"rope_type is default, or llama3 with {LLAMA3_ROPE}",
                          fix="start from a model with one of these rotary tables")
    return {"rope_theta": theta, "factor": float(rope["factor"])}
