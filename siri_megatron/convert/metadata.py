"""The `.metadata` of a distributed checkpoint: what it holds and where, read without trusting it.

torch writes it as a pickle and reads it with `pickle.load`, which runs whatever a hostile file asks for.
`SafeUnpickler` knows only the plain data classes that such a file is made of. The tensors themselves are read with
`weights_only=True`.
"""

from __future__ import annotations

import pickle
from dataclasses import dataclass
from itertools import pairwise
from math import prod
from pathlib import Path
from typing import Any

import torch
from torch.distributed.checkpoint.metadata import Metadata, TensorStorageMetadata

from siri_megatron.errors import ModelError

FILE = ".metadata"
FIX = "copy the checkpoint again"
OPTIMIZER = ("optimizer.", "chained_")
"""Beginnings of the names of optimizer state."""

ALLOWED = {
    "torch.distributed.checkpoint.metadata": {
        "BytesStorageMetadata", "ChunkStorageMetadata", "Metadata", "MetadataIndex", "StorageMeta", "TensorProperties",
        "TensorStorageMetadata", "_MEM_FORMAT_ENCODING"},
    "torch.distributed.checkpoint.planner": {"SavePlan", "WriteItem", "WriteItemType", "TensorWriteData"},
    "torch.distributed.checkpoint.filesystem": {"_StorageInfo", "_StoragePrefix"},
    "torch.serialization": {"_get_layout"},
    "pathlib": {"Path", "PosixPath"},
    "collections": {"OrderedDict", "defaultdict"},
    "torch": {"Size", *(str(kind).removeprefix("torch.") for kind in vars(torch).values()
                        if isinstance(kind, torch.dtype))},
}


class SafeUnpickler(pickle.Unpickler):
    """Refuses every class and function that metadata does not need."""

    def find_class(self, module: str, name: str) -> Any:
        if name not in ALLOWED.get(module, ()):
            raise pickle.UnpicklingError(f"it asks for {module}.{name}")
        return super().find_class(module, name)


@dataclass(frozen=True)
class Stored:
    """Where a chunk of a tensor, or an object, lies."""

    file: Path
    offset: int
    length: int


@dataclass(frozen=True)
class Contents:
    """Tensors of the model and the place of each chunk. Optimizer state, random states and objects are left out."""

    directory: Path
    tensors: dict[str, TensorStorageMetadata]
    chunks: dict[tuple[str, tuple[int, ...]], Stored]
    """(tensor, offset of the chunk) -> its place."""


def read_contents(directory: Path) -> Contents:
    """Read and check the metadata; every file must be there and as long as it says.

    Raises:
        ModelError: names the file that is missing, cut off or not metadata.
    """
    metadata = _load(directory / FILE)
    try:
        return _checked(directory, metadata)
    except (AttributeError, TypeError, ValueError, LookupError) as error:
        raise _no_index(directory / FILE, metadata, str(error)) from None


def _checked(directory: Path, metadata: Metadata) -> Contents:
    """The fields of a pickle may hold anything: what is no number, list or name raises here."""
    places = {index: _place(directory, info) for index, info in metadata.storage_data.items()}
    _check_files(directory, list(places.values()))
    tensors = {name: item for name, item in metadata.state_dict_metadata.items()
               if isinstance(item, TensorStorageMetadata) and not name.startswith(OPTIMIZER)}
    chunks = {(index.fqn, tuple(index.offset)): place for index, place in places.items()
              if index.fqn in tensors and index.offset is not None}
    _check_chunks(tensors, chunks, directory)
    return Contents(directory, tensors, chunks)


def _place(directory: Path, info: Any) -> Stored:
    """Raises ValueError unless the chunk lies in a file of the directory itself, as it is."""
    if Path(info.relative_path).name != str(info.relative_path) or getattr(info, "transform_descriptors", None):
        raise ValueError(f"a chunk in {info.relative_path}, transformed by "
                         f"{getattr(info, 'transform_descriptors', None)}")
    return Stored(directory / info.relative_path, int(info.offset), int(info.length))


def _no_index(path: Path, metadata: Any, reason: str) -> ModelError:
    return ModelError(f"{path} holds a {type(metadata).__name__} that is no index: {reason}",
                      rule="a Metadata with the place of every chunk, in the directory itself", fix=FIX)


def _load(path: Path) -> Metadata:
    try:
        with path.open("rb") as file:
            metadata = SafeUnpickler(file).load()
    except FileNotFoundError:
        raise ModelError(f"{path} does not exist", rule="a distributed checkpoint has one", fix=FIX) from None
    except (pickle.UnpicklingError, EOFError, AttributeError, ImportError, IndexError, KeyError, TypeError, ValueError,
            OSError, MemoryError) as error:
        raise ModelError(f"{path} cannot be read: {type(error).__name__}: {error}",
                         rule="a pickled Metadata of torch.distributed.checkpoint, and nothing else", fix=FIX) from None
    if not isinstance(metadata, Metadata):
        raise _no_index(path, metadata, "another class")
    return metadata


def _check_files(directory: Path, places: list[Stored]) -> None:
    ends: dict[Path, int] = {}
    for place in places:
        ends[place.file] = max(ends.get(place.file, 0), place.offset + place.length)
    for file, end in sorted(ends.items()):
        if not file.is_file():
            raise ModelError(f"{directory} lacks {file.name}, one of {len(ends)} files",
                             rule="all files of a checkpoint", fix=FIX)
        if file.stat().st_size < end:
            raise ModelError(f"{file} has {file.stat().st_size} bytes, {FILE} asks for {end}",
                             rule="a file is as long as the metadata says", fix=FIX)


def _check_chunks(tensors: dict[str, TensorStorageMetadata], chunks: dict[tuple[str, tuple[int, ...]], Stored],
                  directory: Path) -> None:
    """Every chunk has a place that can hold it, and the chunks of a tensor cover it once."""
    for name, tensor in tensors.items():
        for chunk in tensor.chunks:
            place = chunks.get((name, tuple(chunk.offsets)))
            needed = prod(chunk.sizes) * tensor.properties.dtype.itemsize
            if place is None or place.length < needed:
                raise ModelError(f"{name} in {directory}: the chunk at {list(chunk.offsets)} has "
                                 f"{place.length if place else 0} bytes, its shape asks for {needed}",
                                 rule="every chunk is stored whole, in the type of its tensor", fix=FIX)
        if not _tiled(tensor):
            raise ModelError(f"{name} in {directory}: {len(tensor.chunks)} chunks do not make up {list(tensor.size)}",
                             rule="the chunks of a tensor cover it once", fix=FIX)


def _tiled(tensor: TensorStorageMetadata) -> bool:
    """Do the chunks cut the tensor along planes that go through all of it, as every layout does, with none left out?"""
    starts = [sorted({chunk.offsets[dim] for chunk in tensor.chunks}) for dim in range(len(tensor.size))]
    ends = [dict(pairwise([*begin, size])) for begin, size in zip(starts, tensor.size, strict=True)]
    cells = {tuple(chunk.offsets) for chunk in tensor.chunks}
    return (all(begin[:1] == [0] for begin in starts) and len(cells) == len(tensor.chunks) == prod(map(len, starts))
            and all(start + extent == end[start] for chunk in tensor.chunks
                    for start, extent, end in zip(chunk.offsets, chunk.sizes, ends, strict=True)))
