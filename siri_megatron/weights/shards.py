"""A rank's shard of a Megatron parameter from slices of Hugging Face tensors, and back.

Invariants:
- round_trip: `join` of all ranks' shards gives back the tensors that their slices were taken from, bit for bit.
- padding_is_zero: rows that pad the vocabulary are zero, and are not part of any tensor.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from siri_megatron.learner.architecture import Architecture
from siri_megatron.weights.names import Entry, Part


def local_slices(entry: Entry, part: Part, arch: Architecture, tp_rank: int, tp: int) -> tuple[slice, ...]:
    """Which part of the full tensor a rank holds; may end before the rank's shard does, where that is padding."""
    if entry.split is None:
        return tuple(slice(None) for _ in part.shape)
    size = part.shape[entry.split]
    share = (arch.padded_vocab(tp) if _is_vocab(entry) else size) // tp
    cut = slice(min(size, tp_rank * share), min(size, (tp_rank + 1) * share))
    return tuple(cut if dim == entry.split else slice(None) for dim in range(len(part.shape)))


def local_shape(entry: Entry, arch: Architecture, tp: int) -> tuple[int, ...]:
    """Shape of a rank's shard of the merged parameter."""
    first = entry.parts[0].shape
    if entry.split is None:
        return first
    merged = arch.padded_vocab(tp) if _is_vocab(entry) else sum(part.shape[entry.split] for part in entry.parts)
    return tuple(merged // tp if dim == entry.split else size for dim, size in enumerate(first))


def merge(entry: Entry, slices: Sequence[Tensor], arch: Architecture, tp: int) -> Tensor:
    """A rank's shard from its slices of the parts."""
    if entry.merge == "qkv":
        groups = arch.groups // tp
        return torch.cat([piece.unflatten(0, (groups, -1)) for piece in slices], 1).flatten(0, 1)
    shard = torch.cat(list(slices))
    missing = local_shape(entry, arch, tp)[0] - shard.shape[0]
    return torch.cat([shard, shard.new_zeros(missing, *shard.shape[1:])]) if missing else shard


def unmerge(entry: Entry, shard: Tensor, arch: Architecture, tp: int) -> list[Tensor]:
    """A rank's slices of the parts from its shard."""
    if entry.merge == "gate_up":
        return list(shard.chunk(2))
    if entry.merge == "qkv":
        queries, dim = arch.heads // arch.groups, arch.head_dim
        pieces = shard.unflatten(0, (arch.groups // tp, -1)).split([queries * dim, dim, dim], 1)
        return [piece.flatten(0, 1) for piece in pieces]
    return [shard]


def join(entry: Entry, shards: Sequence[Tensor], arch: Architecture) -> Iterator[tuple[str, Tensor]]:
    """The full tensors from the shards of all tensor-parallel ranks, in order; views where nothing is to be joined."""
    if entry.split is None:
        yield entry.parts[0].name, shards[0]
        return
    pieces = zip(*(unmerge(entry, shard, arch, len(shards)) for shard in shards), strict=True)
    for part, ranks in zip(entry.parts, pieces, strict=True):
        yield part.name, (ranks[0] if len(ranks) == 1 else torch.cat(ranks, entry.split))[: part.shape[0]]


def parameters(chunk: Any, entries: Sequence[Entry]) -> list[Tensor]:
    """A model chunk's parameters of these entries, under either spec's names."""
    named = dict(chunk.named_parameters())
    return [named[entry.parameter if entry.parameter in named else entry.fused_parameter] for entry in entries]


def _is_vocab(entry: Entry) -> bool:
    return entry.parameter in ("embedding.word_embeddings.weight", "output_layer.weight")
