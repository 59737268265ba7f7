"""Which Hugging Face tensors make up which Megatron parameter: one table, for load, export and push. No torch.

A Megatron parameter (`Entry`) holds one or several Hugging Face tensors (`Part`), cut over tensor-parallel ranks along
one dimension and merged within a rank:

    one       the rank's slice as it is
    gate_up   the rank's slices of gate and up, one after the other
    qkv       query heads, key head, value head of each query group in turn

What a family's layer holds stands in `learner.families`; here its rows get the model's sizes and the stage's numbers.

Invariants:
- every_tensor_once: the entries of all stages hold each tensor of the model exactly once, in `tensors()` order.
- tied_has_no_head: a tied model has no lm_head; its copy on a last stage of its own is loaded, never exported.

A stage here is a run of layers. With a virtual pipeline a rank holds several: chunk v of pipeline rank p is stage
v x pp + p of pp x vpp (`virtual_stage`), as megatron-core deals layers out (transformer_layer.py,
get_transformer_layer_offset).
"""

from __future__ import annotations

from dataclasses import dataclass

from siri_megatron.learner.architecture import Architecture
from siri_megatron.learner.families import EMBEDDING, FINAL_NORM, HEAD, Merge, Row, Size

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
    entries = [_entry(EMBEDDING, arch)] if stage == 0 else []
    for number in range(per_stage):
        entries += layer_entries(arch, number, stage * per_stage + number)
    if stage == stages - 1:
        entries += [_entry(row, arch) for row in ((FINAL_NORM,) if arch.tied else (FINAL_NORM, HEAD))]
    return entries


def tied_head(arch: Architecture, stage: int, stages: int) -> list[Entry]:
    """The last stage's own copy of a tied embedding, if it has one: loaded like the first stage's, never exported."""
    if not arch.tied or stages == 1 or stage != stages - 1:
        return []
    return [Entry(HEAD.parameter, _entry(EMBEDDING, arch).parts, HEAD.split)]


def layer_entries(arch: Architecture, local: int, layer: int) -> list[Entry]:
    """The parameters of a layer. local: its number in the stage's chunk; layer: its number in the model."""
    return [_entry(row, arch, f"decoder.layers.{local}.", f"model.layers.{layer}.") for row in arch.layer_rows]


def _entry(row: Row, arch: Architecture, here: str = "", there: str = "") -> Entry:
    """A row in the sizes of a model. here, there: what stands before its Megatron and Hugging Face names."""
    sizes: dict[Size, int] = {"hidden": arch.hidden, "queries": arch.heads * arch.head_dim,
                              "keys": arch.groups * arch.head_dim, "head_dim": arch.head_dim, "ffn": arch.ffn,
                              "vocab": arch.vocab}
    parts = tuple(Part(there + name, tuple(sizes[size] for size in shape)) for name, shape in row.tensors.items())
    return Entry(here + row.parameter, parts, row.split, row.merge)
