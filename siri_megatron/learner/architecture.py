"""What a Hugging Face `config.json` says about the model, checked against what the learners can run. No torch.

Invariants:
- refused_by_name: a family or feature that is not supported, or a value of the wrong kind, is refused with the field's
  name and value and what is supported. A field that switches nothing on (a `sliding_window` that is not used) passes.
- as_transformers: an absent field means what transformers takes it for.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from siri_megatron.errors import ConfigError, ModelError
from siri_megatron.learner.families import FAMILIES, K_NORM, Q_NORM, QKV_BIAS, Row
from siri_megatron.learner.fields import Fields
from siri_megatron.learner.rope import Rope, read_rope

# Field -> values that mean what the learners compute; an absent field counts as None.
PLAIN: dict[str, tuple[Any, ...]] = {
    "hidden_act": ("silu", None),
    "attention_bias": (None, False),  # also puts one on the output projection, which Megatron ties to MLP biases
    "mlp_bias": (None, False),
    "attention_dropout": (None, 0.0),
    "partial_rotary_factor": (None, 1.0),
    "rope_interleaved": (None, False),
    "use_mrope": (None, False),
    "is_causal": (None, True),
    "dual_chunk_attention_config": (None,),
    "quantization_config": (None,),
    "num_experts": (None, 0),
    "num_local_experts": (None, 0),
    "n_routed_experts": (None, 0),
}


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
    rope: Rope
    tied: bool
    """The output layer is the embedding."""

    @property
    def layer_rows(self) -> tuple[Row, ...]:
        """The parameters of a layer, in Megatron's order."""
        return FAMILIES[self.family].layer

    @property
    def qkv_bias(self) -> bool:
        return QKV_BIAS in self.layer_rows

    @property
    def qk_norm(self) -> bool:
        return Q_NORM in self.layer_rows and K_NORM in self.layer_rows

    @property
    def softmax_scale(self) -> float | None:
        """Scale of attention logits where it is not 1 / sqrt(head_dim): yarn's attention factor, for query and key."""
        factor = self.rope.attention_factor
        return None if factor == 1.0 else factor ** 2 / self.head_dim ** 0.5

    @property
    def attention_crossover(self) -> int:
        """Length, tokens, at which causal attention costs as much as the matrix products of layers and output.

        A token of a sequence of n meets n / 2 others on average: 2 n x heads x head_dim operations a layer, against
        2 a weight of the matrices.
        """
        queries, keys = self.heads * self.head_dim, self.groups * self.head_dim
        layer = self.hidden * (2 * queries + 2 * keys + 3 * self.ffn)
        return (self.layers * layer + self.hidden * self.vocab) // (self.layers * queries)

    def padded_vocab(self, tp: int) -> int:
        """Rows of the embedding inside Megatron: the vocabulary rounded up to a multiple of tp."""
        return -(-self.vocab // tp) * tp

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> Architecture:
        """Read the fields of a `config.json`.

        Raises:
            ConfigError: a family, feature or field that the learners cannot run; names field and value.
        """
        family = _family(config)
        fields = Fields({**FAMILIES[family].absent, **config})
        max_positions = fields.size("max_position_embeddings")
        _check_features(config, family)
        _check_windows(fields, max_positions)
        heads, groups, head_dim = _heads(fields)
        return cls(
            family=family, layers=fields.size("num_hidden_layers"), hidden=fields.size("hidden_size"), heads=heads,
            groups=groups, head_dim=head_dim, ffn=fields.size("intermediate_size"), vocab=fields.size("vocab_size"),
            max_positions=max_positions, norm_eps=fields.number("rms_norm_eps", 1e-6),
            rope=read_rope(config, max_positions), tied=fields.flag("tie_word_embeddings", False))


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


def _family(config: Mapping[str, Any]) -> str:
    family = config.get("model_type")
    if not isinstance(family, str) or family not in FAMILIES:
        raise ConfigError(f"model_type={family!r} is not a family that the learners know",
                          rule=f"model_type is one of {', '.join(FAMILIES)} (dense decoders)",
                          fix="start from a model of one of these families")
    return family


def _check_features(config: Mapping[str, Any], family: str) -> None:
    for field, allowed in PLAIN.items():
        if config.get(field) not in allowed:
            raise ConfigError(f"{field}={config.get(field)!r} in the config.json of this {family} is not supported",
                              rule=f"{field} is {' or '.join(map(repr, allowed))} (None: absent)",
                              fix="start from a model without this feature")


def _check_windows(fields: Fields, max_positions: int) -> None:
    """Every layer sees the whole context: no window is used, or one that is at least as long."""
    used, window = fields.flag("use_sliding_window", False), fields.values.get("sliding_window")
    whole = window is not None and fields.size("sliding_window") >= max_positions
    if used and window is not None and not whole:
        raise ConfigError(
            f"use_sliding_window=True with sliding_window={window} in config.json, shorter than "
            f"max_position_embeddings={max_positions}", rule="every layer sees the whole context",
            fix="start from a model whose window is not used (use_sliding_window false)")
    other = sorted(set(fields.values.get("layer_types") or ()) - {"full_attention"})
    if other and not (other == ["sliding_attention"] and whole):
        raise ConfigError(f"layer_types holds {', '.join(other)}", rule="every layer is full_attention",
                          fix="start from a model without windowed or linear layers")


def _heads(fields: Fields) -> tuple[int, int, int]:
    """(heads, query groups, head_dim)"""
    heads, hidden = fields.size("num_attention_heads"), fields.size("hidden_size")
    groups = fields.size("num_key_value_heads", heads)
    if heads % groups:
        raise ConfigError(f"num_attention_heads={heads}, num_key_value_heads={groups}",
                          rule="num_attention_heads % num_key_value_heads == 0", fix="mend config.json")
    if fields.values.get("head_dim") is None and hidden % heads:
        raise ConfigError(f"hidden_size={hidden}, num_attention_heads={heads}, and no head_dim in config.json",
                          rule="hidden_size % num_attention_heads == 0 where head_dim is absent",
                          fix="mend config.json")
    head_dim = fields.size("head_dim", hidden // heads)
    if head_dim % 2:
        raise ConfigError(f"head_dim={head_dim} (hidden_size={hidden}, num_attention_heads={heads})",
                          rule="head_dim is even: rotary positions turn pairs of dimensions", fix="mend config.json")
    return heads, groups, head_dim
