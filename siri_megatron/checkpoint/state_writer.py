"""Writes one sharded state in the `torch_dist` format, in three parts of which only the outer two are collective.

    every rank   plan ─► write: its own file, alone, in any thread ─► gather what was written
    rank 0                                                          ─► finish: .metadata, common.pt, metadata.json

megatron's stock saver does the same for huge models, but starts a manager process at the first save (some 5 s, as it
imports the program anew) and forks writers at each one, in a process that has gloo threads and a liveness pipe open.

Invariants:
- same_bits: written at once or in the background, the files are the same.
- on_disk: a file that `finish` speaks of is fsynced and has the length that its writer says, as rank 0 sees it.
- summed_by_its_writer: a file's checksum is taken on the machine that wrote it.
"""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from math import prod
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.checkpoint import FileSystemWriter
from torch.distributed.checkpoint.metadata import Metadata, MetadataIndex
from torch.distributed.checkpoint.planner import SavePlan, WriteItem
from torch.distributed.checkpoint.storage import WriteResult

from siri_megatron.checkpoint.sums import sum_of
from siri_megatron.files import sync_path, write_json
from siri_megatron.learner.runtime import eager_imports

with eager_imports():
    from megatron.core.dist_checkpointing.core import CONFIG_FNAME, CheckpointingConfig
    from megatron.core.dist_checkpointing.state_dict_utils import save_preprocess
    from megatron.core.dist_checkpointing.strategies.common import COMMON_STATE_FNAME
    from megatron.core.dist_checkpointing.strategies.torch import (
        MCoreSavePlanner,
        _replace_state_dict_keys_with_sharded_keys,
        mcore_to_pyt_state_dict,
    )


@dataclass(frozen=True)
class Written:
    """What a rank wrote."""

    results: list[WriteResult]
    files: dict[str, list[int]]
    """Its files: name -> [bytes, CRC-32]; empty without checksums."""


class StateWriter:
    """A planned save of this rank's part of a sharded state.

    Attributes:
        directory: where it goes; made by somebody else.
        bytes: how much this rank writes, about.
    """

    def __init__(self, sharded: dict[str, Any], directory: Path, *, copy: Callable[[str], bool],
                 checksums: bool = True) -> None:
        """Plan. Collective over the default process group.

        Args:
            copy: whether to hold a copy of the tensor of this name (those on a GPU are copied in any case).
            checksums: take those of the files.
        """
        self.directory, self._checksums = directory, checksums
        tensors, self._common = save_preprocess(sharded)
        # Main replicas only: megatron knows which of several equal shards is to be written.
        by_key, _, _ = _replace_state_dict_keys_with_sharded_keys(tensors, keep_only_main_replica=True)
        self._files = FileSystemWriter(directory, thread_count=1, per_thread_copy_ahead=0)
        planner = MCoreSavePlanner(dedup_replicated_tensors=False, flatten_state_dict=False)
        planner.set_up_planner(mcore_to_pyt_state_dict(by_key, False), is_coordinator=dist.get_rank() == 0)
        plan, self._metadata = _agree(planner, self._files)
        self._plan = planner.finish_plan(plan)
        self._held = _Held({item.index: _held(planner.resolve_data(item), copy(item.index.fqn))
                            for item in self._plan.items})
        self.bytes = sum(_size(item) for item in self._plan.items)

    def write(self) -> Written:
        """Write and fsync this rank's file. Not collective; the copies are let go.

        Raises:
            OSError: the disk is full, read-only, gone.
        """
        try:
            results = self._files.write_data(self._plan, self._held).value()
            return Written(results, self._sums({result.storage_data.relative_path for result in results}))
        except RuntimeError as error:  # torch's archive writer hides what the file system said
            hidden = _os_error(error)
            if hidden is None:
                raise
            raise hidden from None
        finally:
            self._held.data.clear()

    def gather(self, written: Written) -> list[Written] | None:
        """What each rank wrote, on rank 0. Collective; nobody waits in it for a disk."""
        rank0 = dist.get_rank() == 0
        everybody: list[Any] | None = [None] * dist.get_world_size() if rank0 else None
        dist.gather_object(written, everybody)
        return everybody

    def finish(self, written: list[Written]) -> dict[str, list[int]]:
        """On rank 0: write what makes the files a checkpoint; returns all files with their sums. Not collective.

        Raises:
            OSError: a file is missing or too short, or the disk is full, read-only, gone.
        """
        assert self._metadata is not None, "only rank 0 finishes"
        for part in written:
            check_lengths(self.directory, (result.storage_data for result in part.results))
        self._files.finish(self._metadata, [part.results for part in written])
        with (self.directory / COMMON_STATE_FNAME).open("wb") as file:
            packed = io.BytesIO()
            torch.save(self._common, packed)
            file.write(packed.getbuffer())
            file.flush()
            os.fsync(file.fileno())
        write_json(self.directory / CONFIG_FNAME, asdict(CheckpointingConfig("torch_dist", 1)))
        sync_path(self.directory)
        common = self._sums({".metadata", COMMON_STATE_FNAME, CONFIG_FNAME})
        return {name: found for files in (*(part.files for part in written), common) for name, found in files.items()}

    def _sums(self, names: Iterable[str]) -> dict[str, list[int]]:
        return {name: sum_of(self.directory / name) for name in names} if self._checksums else {}


def check_lengths(directory: Path, places: Iterable[Any]) -> None:
    """Raises OSError unless the files of these places (relative_path, offset, length) are here in full length."""
    ends: dict[str, int] = {}
    for place in places:
        ends[place.relative_path] = max(ends.get(place.relative_path, 0), place.offset + place.length)
    for name, end in ends.items():
        found = (directory / name).stat().st_size
        if found < end:
            raise OSError(f"{directory / name} has {found} of {end} bytes")


@dataclass(frozen=True)
class _Held:
    """As much of a planner as `write_data` asks."""

    data: dict[MetadataIndex, Any]

    def resolve_data(self, item: WriteItem) -> Any:
        return self.data[item.index]


def _agree(planner: Any, files: FileSystemWriter) -> tuple[SavePlan, Metadata | None]:
    """This rank's part of the global plan; the checkpoint's metadata on rank 0."""
    rank, world = dist.get_rank(), dist.get_world_size()
    local: list[Any] | None = [None] * world if rank == 0 else None
    dist.gather_object(planner.create_local_plan(), local)
    plans, metadata = None, None
    if local is not None:
        plans, metadata = planner.create_global_plan(local)
        plans = files.prepare_global_plan(plans)
    own: list[Any] = [None]
    dist.scatter_object_list(own, plans)
    return own[0], metadata


def _held(data: Any, copy: bool) -> Any:
    if not isinstance(data, torch.Tensor):
        return data  # already serialised
    return data.detach().to("cpu", copy=copy or data.is_cuda)


def _size(item: WriteItem) -> int:
    if item.tensor_data is None:
        return 0
    return prod(item.tensor_data.chunk.sizes) * item.tensor_data.properties.dtype.itemsize


def _os_error(error: BaseException | None) -> OSError | None:
    """The error of the operating system behind an exception."""
    while error is not None and not isinstance(error, OSError):
        error = error.__cause__ or error.__context__
    return error
