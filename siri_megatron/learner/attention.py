"""Causal attention over packed rows without a fused kernel: a few SDPA calls a layer, on any device.

A packed row holds several segments (sequences) one after another. Attention must stay inside a segment, and rotary
positions must restart with each (absolute positions shift log-probs by 1e-4 and more). One SDPA call per segment is
slow, one over the whole row with a block mask computes mostly masked zeros. So segments of similar length are gathered
into groups [n, L], each group is one causal SDPA call, and the results are scattered back:

    row [t, heads, d] ─ gather ─► group [n, heads, L, d] ─ SDPA ─► slots [n x L, heads x d] ─ scatter ─► row

Slots behind the end of a segment repeat its last token. They cannot be seen by real tokens (causal) and nobody reads
them, so their gradient is zero.

With context parallelism every rank gathers the whole row, computes all of it, and keeps its own tokens: this proves the
layout on any device but saves nothing. Transformer Engine's attention passes keys and values round the ranks instead.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from numpy.typing import NDArray
from torch import Tensor

from siri_megatron.batching.context import zigzag
from siri_megatron.batching.lengths import segment_room
from siri_megatron.learner.context import ALONE, ContextRanks, padded_row, places
from siri_megatron.learner.mcore import MegatronModule, PackedSeqParams

SIMILAR = 0.8
"""A group takes segments down to this share of its longest: more calls if higher, more padding if lower."""


@dataclass
class PackedRow(PackedSeqParams):
    """How a packed row [1, t] is made of segments. Travels through GPTModel as its `packed_seq_params`.

    `qkv_format` is "sbhd", not "thd": to Megatron the row is one sequence, whose rotary table happens to be indexed by
    position-in-segment. Its thd path would slice the table per segment, layer and call in Python.
    """

    positions: Tensor = field(default_factory=lambda: torch.empty(0))
    """[t] position of each token inside its segment; padding has 0."""
    gathers: tuple[Tensor, ...] = ()
    """For each group [n, L]: the token that each slot reads."""
    scatter: Tensor = field(default_factory=lambda: torch.empty(0))
    """[t] the slot that each token reads back; padding reads slot 0."""
    place: Tensor | None = None
    """[t x size] with context parallelism, for `ContextRanks.whole_sequence`: `gathers` read the whole row, and
    `positions` and `scatter` are of this rank's part of it."""

    @classmethod
    def of(cls, lengths: NDArray[np.int64], width: int, device: torch.device, context: ContextRanks = ALONE
           ) -> PackedRow:
        """lengths: [segments] tokens, in the row's order; width: tokens of the whole row, padding included."""
        rooms = segments(lengths, width, context.size)
        starts, order = (np.cumsum(rooms) - rooms)[: len(lengths)], zigzag(rooms, context.size)
        inside = np.arange(lengths.sum()) - np.repeat(np.cumsum(lengths) - lengths, lengths)
        tokens = np.repeat(starts, lengths) + inside
        gathers, slot, first_slot = [], 0, np.zeros_like(starts)
        for members in similar_groups(lengths):
            longest = lengths[members].max()
            reach = np.minimum(np.arange(longest), lengths[members, None] - 1)
            gathers.append(torch.from_numpy(starts[members, None] + reach).to(device))
            first_slot[members] = slot + np.arange(len(members)) * longest
            slot += len(members) * longest
        positions, scatter = np.zeros(width, np.int64), np.zeros(width, np.int64)
        positions[tokens], scatter[tokens] = inside, inside + np.repeat(first_slot, lengths)
        positions, scatter = positions[order[context.rank]], scatter[order[context.rank]]
        return cls(qkv_format="sbhd", max_seqlen_q=int(lengths.max()), max_seqlen_kv=int(lengths.max()),
                   positions=torch.from_numpy(positions).to(device), gathers=tuple(gathers),
                   scatter=torch.from_numpy(scatter).to(device),
                   place=places(order).to(device) if context.size > 1 else None)


def segments(lengths: NDArray[np.int64], width: int, size: int) -> NDArray[np.int64]:
    """[segments + 1] tokens that each sequence takes in a packed row cut over `size` ranks; the last is padding."""
    rooms = np.array([segment_room(length, size) for length in lengths.tolist()])
    return np.append(rooms, width - rooms.sum())


def similar_groups(lengths: NDArray[np.int64], similar: float = SIMILAR) -> list[NDArray[np.intp]]:
    """Segments in groups whose shortest has at least `similar` of the longest's tokens; longest first."""
    order = np.argsort(-lengths, kind="stable")
    descending = lengths[order]
    groups, begin = [], 0
    while begin < len(order):
        end = int(np.searchsorted(-descending, -descending[begin] * similar, side="right"))
        groups.append(order[begin:end])
        begin = end
    return groups


class PackedAttention(MegatronModule):
    """Core attention of the local spec: packed rows in groups, padded batches [s, b, heads, d] in one causal call.

    Padding stands at the end of a sequence, where causal attention cannot see it.
    """

    def __init__(self, config: Any, layer_number: int, attn_mask_type: Any, attention_type: str,
                 softmax_scale: float | None = None, **_: Any) -> None:
        super().__init__(config=config)
        self.scale = softmax_scale
        self.context = ContextRanks.here()

    def forward(self, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None = None, *,
                packed_seq_params: PackedRow | None = None, **_: Any) -> Tensor:
        """query [s, b, heads, d], key and value [s, b, groups, d] -> [s, b, heads x d]"""
        if packed_seq_params is None:
            return self._padded(query, key, value)
        row = packed_seq_params
        query, key, value = self._whole(query, key, value, row.place)
        slots = [self._group(query, key, value, gather) for gather in row.gathers]
        return F.embedding(row.scatter, slots[0] if len(slots) == 1 else torch.cat(slots))[:, None]

    def _padded(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        place = own = None
        if self.context.size > 1:
            size, rank = self.context.size, self.context.rank
            place, own = padded_row(len(query) * size, size, rank, query.device)
        q, k, v = (x.permute(1, 2, 0, 3) for x in self._whole(query, key, value, place))
        mixed = self._causal(q, k, v).permute(2, 0, 1, 3).flatten(2)
        return mixed if own is None else mixed.index_select(0, own)

    def _whole(self, query: Tensor, key: Tensor, value: Tensor, place: Tensor | None) -> tuple[Tensor, ...]:
        """The same of the whole sequence, in one exchange."""
        if place is None:
            return query, key, value
        heads = [x.shape[2] for x in (query, key, value)]
        return self.context.whole_sequence(torch.cat([query, key, value], 2), place).split(heads, 2)

    def _group(self, query: Tensor, key: Tensor, value: Tensor, gather: Tensor) -> Tensor:
        """[n x L, heads x d]. F.embedding as the gather: its backward on CPU is much faster than that of indexing."""
        q, k, v = (F.embedding(gather, x[:, 0].flatten(1)).unflatten(-1, x.shape[2:]).transpose(1, 2)
                   for x in (query, key, value))
        return self._causal(q, k, v).transpose(1, 2).flatten(0, 1).flatten(1)

    def _causal(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        grouped = q.shape[1] != k.shape[1]
        return F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=grouped, scale=self.scale)
