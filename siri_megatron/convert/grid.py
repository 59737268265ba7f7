"""Where every parameter lies in a megatron-core distributed checkpoint (`torch_dist`). Pure.

A checkpoint holds global tensors, cut into a grid of chunks; only the grid knows the layout that saved it. Parameters
of layers are stacked: `decoder.layers.mlp.linear_fc2.weight` has shape [layers, hidden, ffn], a layer is a row of it
(`TransformerBlock.sharded_state_dict`, homogeneous layers). A gated fc1 is gate above up in the global tensor, so a
rank's shard of it is two chunks (`apply_swiglu_sharded_factory`). Norms have the names of the te spec, whichever spec
saved them.

Invariants:
- as_megatron_cuts: keys, shapes and offsets are those of `GPTModel.sharded_state_dict` on every rank (main replicas).
- whole_cover: the chunks of all ranks tile each global tensor exactly once.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from siri_megatron.learner.architecture import Architecture
from siri_megatron.weights.names import Entry, stage_entries
from siri_megatron.weights.shards import local_shape

LAYER = re.compile(r"decoder\.layers\.(\d+)\.(.+)")
VOCABULARY = ("embedding.word_embeddings.weight", "output_layer.weight")

# Modules with a state of their own (FP8 scales under te; nothing without FP8), one object a layer.
STATEFUL = ("self_attention.linear_qkv", "self_attention.core_attention", "self_attention.linear_proj",
            "mlp.linear_fc1", "mlp.linear_fc2")

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Slot:
    """Where an entry lies: its tensor in the checkpoint and, for a layer's, the row of it."""

    entry: Entry
    """Numbered as in the whole model (one stage)."""
    key: str
    row: int | None

    def size(self, arch: Architecture, tp: int) -> Shape:
        """Shape of the global tensor; with the vocabulary padded for `tp` ranks."""
        return self.rows(arch) + self.full(arch, tp)

    def full(self, arch: Architecture, tp: int) -> Shape:
        """Shape of the merged parameter, all ranks together."""
        local, split = local_shape(self.entry, arch, tp), self.entry.split
        return tuple(extent * (tp if dim == split else 1) for dim, extent in enumerate(local))

    def rows(self, arch: Architecture) -> Shape:
        return () if self.row is None else (arch.layers,)

    @property
    def place(self) -> Shape:
        """Offset of the row."""
        return () if self.row is None else (self.row,)

    @property
    def one(self) -> Shape:
        """Extent of the row."""
        return () if self.row is None else (1,)


@dataclass(frozen=True)
class Chunk:
    """A box of a global tensor that one tensor-parallel rank owns."""

    slot: Slot
    tp_rank: int
    tp: int
    offset: Shape
    shape: Shape
    part: int | None = None
    """Which tensor of the entry this is, where the rank's tensors are not merged (gate, up)."""


def slots(arch: Architecture) -> list[Slot]:
    """All entries of the model, in the order of `names.tensors`."""
    return [_slot(entry) for entry in stage_entries(arch, 0, 1)]


def rank_chunks(arch: Architecture, tp: int, pp: int) -> list[list[Chunk]]:
    """What each rank writes (tensor-parallel rank fastest, as megatron numbers them)."""
    ranks: list[list[Chunk]] = []
    whole = iter(slots(arch))
    for stage in range(pp):
        # every_tensor_once (names): the stages one after the other are the whole model in order
        owned = [next(whole) for _ in stage_entries(arch, stage, pp)]
        ranks += [[chunk for slot in owned for chunk in slot_chunks(slot, arch, rank, tp)] for rank in range(tp)]
    return ranks


def rank_states(arch: Architecture, tp: int, pp: int) -> list[list[str]]:
    """The keys of the module states that each rank writes; copies of other tensor-parallel ranks are not written."""
    per_stage = arch.layers // pp
    names = [[f"decoder.layers.{module}._extra_state/shard_{layer}_{arch.layers}"
              for layer in range(stage * per_stage, (stage + 1) * per_stage) for module in STATEFUL]
             for stage in range(pp)]
    return [names[stage] if rank == 0 else [] for stage in range(pp) for rank in range(tp)]


def slot_chunks(slot: Slot, arch: Architecture, tp_rank: int, tp: int) -> Iterator[Chunk]:
    """The rank's chunks of an entry; none if another rank writes the copy."""
    entry, local = slot.entry, local_shape(slot.entry, arch, tp)
    if entry.split is None:
        if tp_rank == 0:
            yield Chunk(slot, 0, tp, slot.place + (0,) * len(local), slot.one + local)
        return
    pieces = len(entry.parts) if entry.merge == "gate_up" else 1
    extent = local[entry.split] // pieces
    shape = _with(local, entry.split, extent)
    for piece in range(pieces):
        offset = _with((0,) * len(local), entry.split, (piece * tp + tp_rank) * extent)
        yield Chunk(slot, tp_rank, tp, slot.place + offset, slot.one + shape, piece if pieces > 1 else None)


def padded_rows(arch: Architecture, tp: int) -> set[int]:
    """Rows that an embedding saved by `tp` ranks may have: padded as here, or as Megatron-LM does by default."""
    return {arch.padded_vocab(tp), -(-arch.vocab // (128 * tp)) * 128 * tp}


def _slot(entry: Entry) -> Slot:
    found = LAYER.fullmatch(entry.fused_parameter)
    if found is None:
        return Slot(entry, entry.fused_parameter, None)
    return Slot(entry, f"decoder.layers.{found[2]}", int(found[1]))


def _with(shape: Shape, dim: int, extent: int) -> Shape:
    return (*shape[:dim], extent, *shape[dim + 1:])
