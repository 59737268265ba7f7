"""Which Hugging Face tensors make up which Megatron parameter: one table, for load, export and push. No torch.

A Megatron parameter (`Entry`) holds one or several Hugging Face tensors (`Part`), cut over tensor-parallel ranks along
one dimension and merged within a rank:

    one       the rank's slice as it is
    gate_up   the rank's slices of gate and up, one after the other
    qkv       query heads, key head, value head of each query group in turn

The families differ in little: qwen2 has biases on q, k, v; qwen3 has norms on query and key heads; llama has neither.

Invariants:
- every_tensor_once: the entries of all stages hold each tensor of the model exactly once, in `tensors()` order.
- tied_has_no_head: a tied model has no lm_head; its copy on a last stage of its own is loaded, never exported.

A stage here is a run of layers. With a virtual pipeline a rank holds several: chunk v of pipeline rank p is stage
v x pp + p of pp x vpp (`virtual_stage`), as megatron-core deals layers out (transformer_layer.py,
get_transformer_layer_offset).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from siri_megatron.learner.architecture import Architecture

Merge = Literal["one", "gate_up", "qkv"]

# Transformer Engine keeps a norm's weight inside the linear layer behind it.
FUSED_NORMS = {"input_layernorm.weight": "self_attention.linear_qkv.layer_norm_weight",
               "pre_mlp_layernorm.weight": "mlp.linear_fc1.layer_norm_weight"}


@dataclass(frozen=True)
class Part:
    """A Hugging Face tensor: its name and full shape."""

    name: str
    shape: tuple[int, ...]


@dataclass(frozen=True)
class Entry:
    """A Megatron parameter and the tensors it is made of."""

    parameter: str
    """Name in the stage's chunk, with the stage's own layer numbers."""
    parts: tuple[Part, ...]
    split: int | None = None
    """Dimension that is cut over tensor-parallel ranks; None: every rank holds all of it."""
    merge: Merge = "one"

    @property
    def fused_parameter(self) -> str:
        """Its name under the te spec."""
        for plain, fused in FUSED_NORMS.items():
            if self.parameter.endswith("." + plain):
                return self.parameter.removesuffix(plain) + fused
        return self.parameter


def tensors(arch: Architecture) -> list[Part]:
    """Every tensor of the model in the order of export: embedding, layers, final norm, output layer."""
    return [part for entry in stage_entries(arch, 0, 1) for part in entry.parts]


def virtual_stage(chunk: int, rank: int, pp: int) -> int:
    """Which run of layers chunk `chunk` of pipeline rank `rank` holds."""
    return chunk * pp + rank


def stage_entries(arch: Architecture, stage: int, stages: int) -> list[Entry]:
    """The parameters that a (virtual) pipeline stage owns (layers are cut evenly), in the model's order."""
    per_stage = arch.layers // stages
    entries = [_embedding(arch)] if stage == 0 else []
    for number in range(per_stage):
        entries += layer_entries(arch, number, stage * per_stage + number)
    if stage == stages - 1:
        entries.append(Entry("decoder.final_layernorm.weight", (Part("model.norm.weight", (arch.hidden,)),)))
        if not arch.tied:
            head = Part("lm_head.weight", (arch.vocab, arch.hidden))
            entries.append(Entry("output_layer.weight", (head,), split=0))
    return entries


def tied_head(arch: Architecture, stage: int, stages: int) -> list[Entry]:
    """The last stage's own copy of a tied embedding, if it has one: loaded like the first stage's, never exported."""
    if not arch.tied or stages == 1 or stage != stages - 1:
        return []
    return [Entry("output_layer.weight", _embedding(arch).parts, split=0)]


def layer_entries(arch: Architecture, local: int, layer: int) -> list[Entry]:
    """The parameters of a layer. local: its number in the stage's chunk; layer: its number in the model."""
    here, there = f"decoder.layers.{local}", f"model.layers.{layer}"
    q, kv = arch.heads * arch.head_dim, arch.groups * arch.head_dim

    def part(name: str, *shape: int) -> Part:
        return Part(f"{there}.{name}", shape)

    def entry(name: str, *parts: Part, split: int | None = None, merge: Merge = "one") -> Entry:
        return Entry(f"{here}.{name}", parts, split, merge)

    entries = [
        entry("input_layernorm.weight", part("input_layernorm.weight", arch.hidden)),
        entry("self_attention.linear_qkv.weight", part("self_attn.q_proj.weight", q, arch.hidden),
              part("self_attn.k_proj.weight", kv, arch.hidden), part("self_attn.v_proj.weight", kv, arch.hidden),
              split=0, merge="qkv")]
    if arch.qkv_bias:
        entries.append(entry("self_attention.linear_qkv.bias", part("self_attn.q_proj.bias", q),
                             part("self_attn.k_proj.bias", kv), part("self_attn.v_proj.bias", kv),
                             split=0, merge="qkv"))
    if arch.qk_norm:
        entries += [entry("self_attention.q_layernorm.weight", part("self_attn.q_norm.weight", arch.head_dim)),
                    entry("self_attention.k_layernorm.weight", part("self_attn.k_norm.weight", arch.head_dim))]
    return [
        *entries,
        entry("self_attention.linear_proj.weight", part("self_attn.o_proj.weight", arch.hidden, q), split=1),
        entry("pre_mlp_layernorm.weight", part("post_attention_layernorm.weight", arch.hidden)),
        entry("mlp.linear_fc1.weight", part("mlp.gate_proj.weight", arch.ffn, arch.hidden),
              part("mlp.up_proj.weight", arch.ffn, arch.hidden), split=0, merge="gate_up"),
        entry("mlp.linear_fc2.weight", part("mlp.down_proj.weight", arch.hidden, arch.ffn), split=1),
    ]


def _embedding(arch: Architecture) -> Entry:
    return Entry("embedding.word_embeddings.weight", (Part("model.embed_tokens.weight", (arch.vocab, arch.hidden)),),
                 split=0)
