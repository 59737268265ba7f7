"""The model's weights as Hugging Face tensors, whole, on every rank, in one order: for pushes and for saved models.

Stage by stage, bucket by bucket: the owning stage gathers its shards over tensor-parallel ranks and hands the bucket to
the other stages. Names and shapes are known to everyone from the table, so nothing but weights is sent, and no rank
holds more than a bucket beside its own shards.

Invariants:
- collective: every rank iterates to the end; buckets are the same everywhere.
- bit_exact: a model that was loaded is exported with the same bits (in the model's dtype).
"""

from __future__ import annotations

from collections.abc import Iterator
from math import prod
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from siri_megatron.learner.architecture import Architecture
from siri_megatron.learner.mcore import parallel_state
from siri_megatron.weights.names import Entry, stage_entries
from siri_megatron.weights.shards import join, local_shape, parameters

BUCKET_BYTES = 64 << 20


def export_tensors(chunks: list[Any], arch: Architecture, *,
                   bucket_bytes: int = BUCKET_BYTES) -> Iterator[tuple[str, Tensor]]:
    """(name, full tensor) in the order of `names.tensors`. Tensors are copies, in the parameters' dtype."""
    pp = parallel_state.get_pipeline_model_parallel_world_size()
    stages = pp * len(chunks)
    like = next(chunks[0].parameters())
    for stage in range(stages):  # of the virtual pipeline: dealt to the ranks in turn
        number, owner = divmod(stage, pp)
        own = parallel_state.get_pipeline_model_parallel_rank() == owner
        for bucket in buckets(stage_entries(arch, stage, stages), bucket_bytes, like.element_size()):
            flat = _gather(chunks[number], bucket) if own else None
            yield from _unpack(_broadcast(flat, bucket, arch, owner, like), bucket, arch)


def buckets(entries: list[Entry], bucket_bytes: int, element_size: int) -> Iterator[list[Entry]]:
    """Entries in order, in runs of at most bucket_bytes (full tensors); a larger one stands alone."""
    bucket: list[Entry] = []
    size = 0
    for entry in entries:
        add = sum(prod(part.shape) for part in entry.parts) * element_size
        if bucket and size + add > bucket_bytes:
            yield bucket
            bucket, size = [], 0
        bucket.append(entry)
        size += add
    if bucket:
        yield bucket


def _gather(chunk: Any, bucket: list[Entry]) -> Tensor:
    """[tp, elements of a rank's shards], on the owning stage."""
    group = parallel_state.get_tensor_model_parallel_group()
    shards = torch.cat([parameter.detach().flatten() for parameter in parameters(chunk, bucket)])
    gathered = shards.new_empty(dist.get_world_size(group), len(shards))
    dist.all_gather(list(gathered.unbind()), shards, group=group)
    return gathered


def _broadcast(gathered: Tensor | None, bucket: list[Entry], arch: Architecture, owner: int, like: Tensor) -> Tensor:
    """The bucket of the owner (a pipeline rank), on every pipeline rank."""
    group = parallel_state.get_pipeline_model_parallel_group()
    if dist.get_world_size(group) == 1:
        assert gathered is not None
        return gathered
    if gathered is None:
        tp = parallel_state.get_tensor_model_parallel_world_size()
        gathered = like.new_empty(tp, sum(prod(local_shape(entry, arch, tp)) for entry in bucket))
    dist.broadcast(gathered, dist.get_global_rank(group, owner), group=group)
    return gathered


def _unpack(gathered: Tensor, bucket: list[Entry], arch: Architecture) -> Iterator[tuple[str, Tensor]]:
    tp = gathered.shape[0]
    shapes = [local_shape(entry, arch, tp) for entry in bucket]
    pieces = gathered.split([prod(shape) for shape in shapes], 1)
    for entry, shape, piece in zip(bucket, shapes, pieces, strict=True):
        yield from join(entry, [shard.view(shape) for shard in piece.unbind()], arch)
