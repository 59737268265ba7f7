"""The model's weights as Hugging Face tensors, whole, on every rank, in one order: for pushes and for saved models.

Stage by stage, bucket by bucket: the owning stage gathers its shards over tensor-parallel ranks and hands the bucket to
the other stages. Names and shapes are known to everyone from the table, so nothing but weights is sent. A rank that
has everything itself hands out its own weights, uncopied.

Invariants:
- collective: every rank iterates to the end; buckets are the same everywhere.
- bit_exact: a model that was loaded is exported with the same bits (in the model's dtype).
- streamed: beside its own shards a rank holds a bucket and one tensor that is joined from it.
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
    """(name, full tensor) in the order of `names.tensors`, in the parameters' dtype.

    Tensors may be views of the weights: whoever keeps one beyond the next optimizer step copies it.
    """
    pp = parallel_state.get_pipeline_model_parallel_world_size()
    stages = pp * len(chunks)
    like = next(chunks[0].parameters())
    for stage in range(stages):  # of the virtual pipeline: dealt to the ranks in turn
        number, owner = divmod(stage, pp)
        own = parallel_state.get_pipeline_model_parallel_rank() == owner
        for bucket in buckets(stage_entries(arch, stage, stages), bucket_bytes, like.element_size()):
            if _alone():
                for entry, parameter in zip(bucket, parameters(chunks[number], bucket), strict=True):
                    yield from join(entry, [parameter.detach()], arch)
            else:  # nothing here may keep a bucket alive while the next one is gathered
                yield from _unpack(_broadcast(_gather(chunks[number], bucket) if own else None, bucket, arch, owner,
                                              like), bucket, arch)


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


def _alone() -> bool:
    """This rank holds the whole model."""
    return (parallel_state.get_tensor_model_parallel_world_size() == 1
            and parallel_state.get_pipeline_model_parallel_world_size() == 1)


def _gather(chunk: Any, bucket: list[Entry]) -> Tensor:
    """[tp, elements of a rank's shards], on the owning stage."""
    group = parallel_state.get_tensor_model_parallel_group()
    held = [parameter.detach().flatten() for parameter in parameters(chunk, bucket)]
    gathered = held[0].new_empty(dist.get_world_size(group), sum(len(shard) for shard in held))
    own = torch.cat(held, out=gathered[dist.get_rank(group)])
    if gathered.device.type == "cuda":
        dist.all_gather_into_tensor(gathered, own, group=group)  # in place
    else:  # gloo's all_gather works in a copy of all that is gathered
        for rank, shards in enumerate(gathered.unbind()):
            dist.broadcast(shards, dist.get_global_rank(group, rank), group=group)
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
