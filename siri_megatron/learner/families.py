"""The model families, one entry each: what a layer is made of, and what transformers takes an absent field for.

A `Row` is a Megatron parameter, the Hugging Face tensors that make it up with their shapes in named sizes, and how it
is cut. Loading, saving, export, push and the check of a saved model all read these rows (through `weights.names`), and
the learner takes biases and norms on heads from them.

A family that is another mix of these rows needs an entry in `FAMILIES` and nothing else; `tests/weights/test_names.py`
holds it against the tensors that transformers makes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

Size = Literal["hidden", "queries", "keys", "head_dim", "ffn", "vocab"]
"""queries and keys: heads x head_dim and key-value heads x head_dim."""
Merge = Literal["one", "gate_up", "qkv"]


@dataclass(frozen=True)
class Row:
    """A parameter of a layer (names relative to the layer) or of the model."""

    parameter: str
    tensors: Mapping[str, tuple[Size, ...]]
    """Hugging Face name -> shape, in the order in which they are merged."""
    split: int | None = None
    """Dimension that is cut over tensor-parallel ranks; None: every rank holds all of it."""
    merge: Merge = "one"


EMBEDDING = Row("embedding.word_embeddings.weight", {"model.embed_tokens.weight": ("vocab", "hidden")}, split=0)
FINAL_NORM = Row("decoder.final_layernorm.weight", {"model.norm.weight": ("hidden",)})
HEAD = Row("output_layer.weight", {"lm_head.weight": ("vocab", "hidden")}, split=0)

INPUT_NORM = Row("input_layernorm.weight", {"input_layernorm.weight": ("hidden",)})
QKV = Row("self_attention.linear_qkv.weight",
          {"self_attn.q_proj.weight": ("queries", "hidden"), "self_attn.k_proj.weight": ("keys", "hidden"),
           "self_attn.v_proj.weight": ("keys", "hidden")}, split=0, merge="qkv")
QKV_BIAS = Row("self_attention.linear_qkv.bias",
               {"self_attn.q_proj.bias": ("queries",), "self_attn.k_proj.bias": ("keys",),
                "self_attn.v_proj.bias": ("keys",)}, split=0, merge="qkv")
Q_NORM = Row("self_attention.q_layernorm.weight", {"self_attn.q_norm.weight": ("head_dim",)})
K_NORM = Row("self_attention.k_layernorm.weight", {"self_attn.k_norm.weight": ("head_dim",)})
OUT = Row("self_attention.linear_proj.weight", {"self_attn.o_proj.weight": ("hidden", "queries")}, split=1)
MLP_NORM = Row("pre_mlp_layernorm.weight", {"post_attention_layernorm.weight": ("hidden",)})
GATE_UP = Row("mlp.linear_fc1.weight",
              {"mlp.gate_proj.weight": ("ffn", "hidden"), "mlp.up_proj.weight": ("ffn", "hidden")},
              split=0, merge="gate_up")
DOWN = Row("mlp.linear_fc2.weight", {"mlp.down_proj.weight": ("hidden", "ffn")}, split=1)


@dataclass(frozen=True)
class Family:
    """A `model_type`."""

    layer: tuple[Row, ...]
    """The parameters of a layer, in Megatron's order."""
    absent: Mapping[str, Any] = field(default_factory=dict)
    """What transformers takes an absent field of config.json for, where that is not what the others imply."""


FAMILIES = {
    "llama": Family((INPUT_NORM, QKV, OUT, MLP_NORM, GATE_UP, DOWN)),
    "qwen2": Family((INPUT_NORM, QKV, QKV_BIAS, OUT, MLP_NORM, GATE_UP, DOWN), absent={"num_key_value_heads": 32}),
    "qwen3": Family((INPUT_NORM, QKV, Q_NORM, K_NORM, OUT, MLP_NORM, GATE_UP, DOWN),
                    absent={"num_key_value_heads": 32, "head_dim": 128}),
}
