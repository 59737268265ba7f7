"""Write a distributed checkpoint of weights alone, for any layout, in this one process.

torch.distributed.checkpoint plans first and resolves data last: the plans of all files are made from the grid, its
stock FileSystemWriter then asks `LazyPlanner` for one chunk after the other. A rank has two files, as if it had saved
with megatron's two writer threads; megatron's own loader reads them.

Invariants:
- streamed: a chunk is read when it is written; of each of two open files only the last chunk of each key is held.
- as_megatron_saves: `dist_checkpointing.load` into a GPTModel of any layout gives the very weights.

Trap: FileSystemWriter's own threads (`thread_count`) swallow what goes wrong in them; ours do not.
"""

from __future__ import annotations

import io
import json
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import accumulate
from math import prod
from pathlib import Path
from typing import Any

import torch
from torch.distributed.checkpoint import FileSystemWriter, SavePlan, WriteItem
from torch.distributed.checkpoint.default_planner import create_default_global_save_plan
from torch.distributed.checkpoint.metadata import ChunkStorageMetadata, MetadataIndex, TensorProperties
from torch.distributed.checkpoint.planner import SavePlanner, TensorWriteData, WriteItemType

from siri_megatron.checkpoint.hf_export import copy_companions
from siri_megatron.convert.common_state import FILE, common_state
from siri_megatron.convert.grid import Chunk, rank_chunks, rank_states
from siri_megatron.convert.place import HF, MARK, RELEASE, TRACKER
from siri_megatron.convert.source import Weights
from siri_megatron.learner.architecture import Architecture

FILES = 2
"""Files a rank, and files that are written at a time."""
FORMAT = {"sharded_backend": "torch_dist", "sharded_backend_version": 1,
          "common_backend": "torch", "common_backend_version": 1}


def write_megatron(weights: Weights, directory: Path, dtype: torch.dtype, *, tp: int, pp: int,
                   advance: Callable[[int], None]) -> None:
    """Write release/, hf/ and the tracker of Megatron-LM.

    Args:
        directory: existing, empty.
        dtype: of the written tensors.
        advance: told the bytes that were written; called by several threads.
    """
    state, companions = directory / RELEASE, directory / HF
    state.mkdir()
    companions.mkdir()
    _write_tensors(weights, state, dtype, tp, pp, advance)
    torch.save(common_state(weights, dtype, tp, pp), state / FILE)
    (state / MARK).write_text(json.dumps(FORMAT))
    copy_companions(weights.companions, companions, dtype)
    (directory / TRACKER).write_text(RELEASE + "\n")


class LazyPlanner(SavePlanner):
    """Answers the writer's question for a chunk's data by reading it from the source."""

    def __init__(self, weights: Weights, chunks: list[Chunk], dtype: torch.dtype,
                 advance: Callable[[int], None]) -> None:
        self._weights, self._dtype, self._advance = weights, dtype, advance
        self._chunks = {(chunk.slot.key, chunk.offset): chunk for chunk in chunks}
        self._lock, self._stopped = threading.Lock(), False

    def stop(self) -> None:
        """End the other threads at their next chunk."""
        self._stopped = True

    def resolve_data(self, write_item: WriteItem) -> torch.Tensor | io.BytesIO:
        if self._stopped:
            raise InterruptedError("another thread failed, or the conversion was interrupted")
        if write_item.type == WriteItemType.BYTE_IO:
            return empty_state()
        index = write_item.index
        assert index.offset is not None
        value = own_storage(self._weights.chunk(self._chunks[index.fqn, tuple(index.offset)]).to(self._dtype))
        with self._lock:
            self._advance(value.nbytes)
        return value

    def set_up_planner(self, *_: Any, **__: Any) -> None:
        raise NotImplementedError("plans are made from the grid")

    create_local_plan = create_global_plan = finish_plan = set_up_planner


def own_storage(tensor: torch.Tensor) -> torch.Tensor:
    """The same memory in a storage that holds nothing else: torch saves whole storages, so the writer copies others."""
    if tensor.untyped_storage().nbytes() == tensor.nbytes:
        return tensor
    flat = torch.from_numpy(tensor.contiguous().flatten().view(torch.uint8).numpy())
    return flat.view(tensor.dtype).view(tensor.shape)


@contextmanager
def without_sums() -> Iterator[None]:
    """torch.save leaves out CRC32: a quarter of a second a GB, read by nobody (torch.load checks none)."""
    before = torch.serialization.get_crc32_options()
    torch.serialization.set_crc32_options(False)
    try:
        yield
    finally:
        torch.serialization.set_crc32_options(before)


def empty_state() -> io.BytesIO:
    """What megatron saves for a module without a state of its own (`_mcore_to_torch_sharded_object`)."""
    data = io.BytesIO()
    torch.save([None], data)
    return data


def save_plan(chunks: list[Chunk], states: list[str], arch: Architecture, dtype: torch.dtype) -> SavePlan:
    """What goes into one file."""
    items = [WriteItem(MetadataIndex(name), WriteItemType.BYTE_IO) for name in states]
    for chunk in chunks:
        offset = torch.Size(chunk.offset)
        data = TensorWriteData(ChunkStorageMetadata(offset, torch.Size(chunk.shape)), TensorProperties(dtype=dtype),
                               torch.Size(chunk.slot.size(arch, chunk.tp)))
        items.append(WriteItem(MetadataIndex(chunk.slot.key, offset), WriteItemType.SHARD, tensor_data=data))
    return SavePlan(items)


def file_plans(arch: Architecture, dtype: torch.dtype, tp: int, pp: int) -> list[SavePlan]:
    """The files of all ranks, one rank after the other."""
    plans = []
    for chunks, states in zip(rank_chunks(arch, tp, pp), rank_states(arch, tp, pp), strict=True):
        halves = cut_evenly(chunks, FILES)
        plans += [save_plan(half, states if number == 0 else [], arch, dtype) for number, half in enumerate(halves)]
    return plans


def cut_evenly(chunks: list[Chunk], ways: int) -> list[list[Chunk]]:
    """In order, into runs of about the same number of elements."""
    ends = list(accumulate(prod(chunk.shape) for chunk in chunks))
    runs: list[list[Chunk]] = [[] for _ in range(ways)]
    for chunk, end in zip(chunks, ends, strict=True):
        runs[(end - 1) * ways // ends[-1]].append(chunk)
    return runs


def _write_tensors(weights: Weights, state: Path, dtype: torch.dtype, tp: int, pp: int,
                   advance: Callable[[int], None]) -> None:
    chunks = [chunk for owned in rank_chunks(weights.arch, tp, pp) for chunk in owned]
    planner = LazyPlanner(weights, chunks, dtype, advance)
    writer = FileSystemWriter(state, thread_count=1, overwrite=False)
    writer.set_up_storage_writer(True)
    plans, metadata = create_default_global_save_plan(file_plans(weights.arch, dtype, tp, pp))
    with without_sums(), ThreadPoolExecutor(FILES) as pool:
        try:
            written = list(pool.map(lambda plan: writer.write_data(plan, planner).value(),
                                    writer.prepare_global_plan(plans)))
        finally:
            planner.stop()
    writer.finish(metadata, written)
