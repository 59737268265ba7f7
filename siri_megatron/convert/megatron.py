"""Megatron-core's distributed checkpoints as a source: the weights of any layout, one box at a time.

Invariants:
- any_layout: what is read does not depend on the layout that saved it; the optimizer state beside it is left alone.
- exactly_these: a missing, surplus, misshapen or mistyped tensor is refused by name, before anything is written.
- mapped: reading copies nothing that is used as it lies in its file; a mapping lives as long as its tensor.
- padding_trimmed: rows that pad the vocabulary are no part of a tensor, and are written as zeros.
"""

from __future__ import annotations

import mmap
import pickle
from itertools import accumulate
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor
from torch.distributed.checkpoint import ReadItem
from torch.distributed.checkpoint.metadata import ChunkStorageMetadata
from torch.distributed.checkpoint.planner_helpers import create_read_items_for_chunk_list
from torch.distributed.checkpoint.utils import _create_file_view

from siri_megatron.convert.common_state import check_args
from siri_megatron.convert.grid import VOCABULARY, Chunk, Shape, Slot, padded_rows, slots
from siri_megatron.convert.metadata import FIX, Contents, Stored, read_contents
from siri_megatron.convert.place import find_hf, find_state
from siri_megatron.convert.source import KINDS, name_of, only_dtype
from siri_megatron.errors import ModelError
from siri_megatron.learner.architecture import Architecture, read_config
from siri_megatron.weights.shards import unmerge


class MegatronWeights:
    """The model in a distributed checkpoint."""

    def __init__(self, contents: Contents, companions: Path, config: dict[str, Any], arch: Architecture,
                 dtype: torch.dtype) -> None:
        self.path, self.companions = contents.directory, companions
        self.config, self.arch, self.dtype, self._contents = config, arch, dtype, contents

    @classmethod
    def open(cls, path: Path, *, hf: Path | None = None) -> MegatronWeights:
        """Find the checkpoint and its Hugging Face side, and check one against the other.

        Args:
            hf: directory with config.json and tokenizer, where they do not lie beside the checkpoint.

        Raises:
            ConfigError: a family or feature that the learners do not know.
            ModelError: names the file, tensor or field that is wrong.
        """
        state = find_state(path)
        companions = find_hf(state, hf)
        config = read_config(companions)
        arch = Architecture.of(config)
        check_args(state, arch, companions)
        contents = read_contents(state)
        check_contents(contents, arch, companions)
        dtype, _ = only_dtype({name: tensor.properties.dtype for name, tensor in contents.tensors.items()})
        return cls(contents, companions, config, arch, dtype)

    def tensors(self, slot: Slot) -> list[Tensor]:
        if slot.entry.merge == "qkv":
            shape = slot.full(self.arch, 1)
            return unmerge(slot.entry, self._box(slot, 0, shape), self.arch, 1)
        starts = accumulate((part.shape[0] for part in slot.entry.parts), initial=0)
        return [self._box(slot, start, part.shape) for start, part in zip(starts, slot.entry.parts, strict=False)]

    def chunk(self, chunk: Chunk) -> Tensor:
        if chunk.slot.key not in VOCABULARY:
            return self._read(chunk.slot.key, chunk.offset, chunk.shape)
        start, rows = chunk.offset[0], chunk.shape[0]
        there = max(0, min(rows, self.arch.vocab - start))
        value = torch.zeros(chunk.shape, dtype=self.dtype)
        value[:there] = self._read(chunk.slot.key, chunk.offset, (there, *chunk.shape[1:]))
        return value

    def _box(self, slot: Slot, start: int, shape: Shape) -> Tensor:
        """Some of a parameter's first dimension."""
        offset = slot.place + (start,) + (0,) * (len(shape) - 1)
        return self._read(slot.key, offset, slot.one + shape).view(shape)

    def _read(self, key: str, offset: Shape, shape: Shape) -> Tensor:
        """A box of a global tensor, from whatever chunks hold it."""
        wanted = ChunkStorageMetadata(torch.Size(offset), torch.Size(shape))
        items = create_read_items_for_chunk_list(key, self._contents.tensors[key], [wanted])
        if len(items) == 1 and (only := self._stored(items[0])).is_contiguous():
            return only
        target = torch.empty(shape, dtype=self.dtype)
        for item in items:
            _box(target, item.dest_offsets, item.lengths).copy_(self._stored(item))
        return target

    def _stored(self, item: ReadItem) -> Tensor:
        """The part of a stored chunk that an item asks for."""
        index = item.storage_index
        assert index.offset is not None
        place = self._contents.chunks[index.fqn, tuple(index.offset)]
        value = load_chunk(place)
        if value.dtype != self.dtype:
            raise ModelError(f"{index.fqn} in {place.file} is of type {name_of(value.dtype)}, "
                             f".metadata says {name_of(self.dtype)}",
                             rule="a chunk has the type of its tensor", fix=FIX)
        return _box(value, item.storage_offsets, item.lengths)


def load_chunk(place: Stored) -> Tensor:
    """A chunk as it was saved: one torch archive inside the file, whose data are mapped, not read.

    Loaded to the meta device, torch reads everything but the data, and says where these lie.

    Raises:
        ModelError: names the file.
    """
    try:
        with place.file.open("rb") as file:
            archive = _create_file_view(file, place.offset, place.length)
            described = torch.load(archive, map_location="meta", weights_only=True)
            return _mapped(file, place, described)
    except (RuntimeError, pickle.UnpicklingError, EOFError, OSError, ValueError) as error:
        reason = str(error).partition("\n")[0][:200]
        raise ModelError(f"{place.file} cannot be read at byte {place.offset}: {reason}",
                         rule="a chunk is a whole torch archive", fix=FIX) from None


def _mapped(file: BinaryIO, place: Stored, described: Any) -> Tensor:
    if not isinstance(described, Tensor) or not described.is_contiguous() or described.storage_offset():
        raise ValueError("it holds something else than a plain tensor")
    inside = described.untyped_storage()._checkpoint_offset
    if inside + described.nbytes > place.length:
        raise ValueError(f"{described.nbytes} bytes of data do not fit into the {place.length} that are stored")
    begin = place.offset + inside
    page = begin - begin % mmap.ALLOCATIONGRANULARITY
    # a private mapping: torch wants memory that could be written to
    memory = mmap.mmap(file.fileno(), begin + described.nbytes - page, offset=page, access=mmap.ACCESS_COPY)
    flat = torch.frombuffer(memory, dtype=described.dtype, count=described.numel(), offset=begin - page)
    return flat.view(described.shape)


def check_contents(contents: Contents, arch: Architecture, companions: Path) -> None:
    """Exactly the tensors of the architecture, in their shapes, of one type.

    Raises:
        ModelError: names the tensor.
    """
    by_key = {slot.key: slot for slot in slots(arch)}
    where = f"the {arch.family} of {companions / 'config.json'}"
    found = contents.tensors.keys()
    for word, names in (("lacks", by_key.keys() - found), ("has a surplus of", found - by_key.keys())):
        if names:
            first = ", ".join(sorted(names)[:4]) + (", ..." if len(names) > 4 else "")
            raise ModelError(f"{contents.directory} {word} {len(names)} tensors: {first}",
                             rule=f"exactly the {len(by_key)} tensors of {where}, tie_word_embeddings={arch.tied}",
                             fix="give the Hugging Face directory of this model with --hf, or " + FIX)
    for slot in by_key.values():
        _check_shape(contents, slot, arch, where)
    _check_types(contents)


def _check_shape(contents: Contents, slot: Slot, arch: Architecture, where: str) -> None:
    tensor = contents.tensors[slot.key]
    found, wanted = tuple(tensor.size), slot.size(arch, 1)
    if slot.key in VOCABULARY:
        ranks = len({chunk.offsets[0] for chunk in tensor.chunks})
        if found[1:] == wanted[1:] and found[0] in padded_rows(arch, ranks):
            return
    elif found == wanted:
        return
    raise ModelError(f"{slot.key} in {contents.directory} has shape {list(found)}, {where} asks for {list(wanted)} "
                     f"({_field(slot, found, wanted)})",
                     rule="checkpoint and config.json are of one model (vocabularies may be padded for their ranks)",
                     fix="give the Hugging Face directory of this model with --hf")


def _field(slot: Slot, found: Shape, wanted: Shape) -> str:
    """The field of config.json that most likely differs."""
    if slot.row is not None and found[0] != wanted[0]:
        return f"num_hidden_layers={wanted[0]}"
    if slot.key in VOCABULARY and found[1:] == wanted[1:]:
        return f"vocab_size={wanted[0]}"
    if "linear_qkv" in slot.key or "linear_proj" in slot.key:
        return "hidden_size, num_attention_heads, num_key_value_heads or head_dim"
    return "hidden_size or intermediate_size"


def _check_types(contents: Contents) -> None:
    kinds = {name: tensor.properties.dtype for name, tensor in contents.tensors.items()}
    most, other = only_dtype(kinds)
    wrong = next((name for name, kind in kinds.items() if kind not in KINDS.values()), other)
    if wrong:
        raise ModelError(f"{wrong} in {contents.directory} is of type {name_of(kinds[wrong])}, "
                         f"most are {name_of(most)}",
                         rule=f"all tensors have one type of {', '.join(map(name_of, KINDS.values()))}",
                         fix="save the checkpoint in one of these types")


def _box(tensor: Tensor, offsets: Shape, lengths: Shape) -> Tensor:
    return tensor[tuple(slice(start, start + length) for start, length in zip(offsets, lengths, strict=True))]
