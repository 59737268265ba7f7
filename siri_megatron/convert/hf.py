"""Hugging Face directories as source and as target of a conversion.

Invariants:
- exactly_these: a directory with a missing, surplus, misshapen or mistyped tensor, or a shard that is cut off, is
  refused by name before anything is written.
- streamed: reading maps one tensor at a time, writing holds one entry; files are written front to back.
- as_safetensors: what is written is what safetensors' own reader reads, laid out in the order of `names.tensors`.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from math import prod
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from siri_megatron.checkpoint.hf_export import copy_companions
from siri_megatron.convert.grid import Chunk, Slot, slots
from siri_megatron.convert.source import KINDS, Weights, name_of, only_dtype
from siri_megatron.errors import ModelError
from siri_megatron.launch.model_files import stored_tensors
from siri_megatron.learner.architecture import Architecture, read_config
from siri_megatron.weights import stored
from siri_megatron.weights.names import Part, tensors
from siri_megatron.weights.shards import local_slices, merge
from siri_megatron.weights.stored import FIX, Stored

SHARD_BYTES = 5 * 10**9
KIND_OF = {dtype: kind for kind, dtype in KINDS.items()}


class HfWeights:
    """The tensors of a Hugging Face directory."""

    def __init__(self, path: Path, config: dict[str, Any], arch: Architecture, dtype: torch.dtype,
                 files: dict[str, Path]) -> None:
        self.path = self.companions = path
        self.config, self.arch, self.dtype, self._files = config, arch, dtype, files

    @classmethod
    def open(cls, path: Path) -> HfWeights:
        """Check the directory from its config and the headers of its files.

        Raises:
            ConfigError: a family or feature that the learners do not know.
            ModelError: names the file or tensor that is wrong.
        """
        config = read_config(path)
        arch = Architecture.of(config)
        found = stored_tensors(path)
        stored.check_stored(found, arch, path)
        wanted = {part.name: found[part.name] for part in tensors(arch)}
        opened = cls(path, config, arch, _dtype(wanted), {name: tensor.file for name, tensor in found.items()})
        if arch.tied and stored.HEAD in found:
            opened._check_tied_copy()
        return opened

    def tensors(self, slot: Slot) -> list[Tensor]:
        return [self._slice(part, ...) for part in slot.entry.parts]

    def chunk(self, chunk: Chunk) -> Tensor:
        entry = chunk.slot.entry
        parts = entry.parts if chunk.part is None else entry.parts[chunk.part:chunk.part + 1]
        slices = [self._slice(part, local_slices(entry, part, self.arch, chunk.tp_rank, chunk.tp)) for part in parts]
        value = slices[0] if slices[0].numel() == prod(chunk.shape) else merge(entry, slices, self.arch, chunk.tp)
        return value.reshape(chunk.shape).contiguous()

    def _slice(self, part: Part, box: Any) -> Tensor:
        """A view into the mapped file, unmapped when the view goes."""
        with safe_open(self._files[part.name], framework="pt") as file:
            return file.get_slice(part.name)[box]

    def _check_tied_copy(self) -> None:
        """Some writers store the output layer of a tied model too: fine if it is the embedding."""
        embedding = tensors(self.arch)[0]
        if not torch.equal(self._slice(embedding, ...), self._slice(Part(stored.HEAD, embedding.shape), ...)):
            raise ModelError(f"{stored.HEAD} differs from {embedding.name}, but config.json ties them",
                             rule="tie_word_embeddings=true: both are one tensor",
                             fix="set tie_word_embeddings to false")


def write_hf(weights: Weights, directory: Path, dtype: torch.dtype, *, shard_bytes: int = SHARD_BYTES,
             advance: Callable[[int], None]) -> None:
    """Write safetensors files, their index if there are several, and the companions of the source.

    Args:
        directory: existing, empty.
        dtype: of the written tensors.
        advance: told the bytes that were written.
    """
    files = plan_files(tensors(weights.arch), dtype, shard_bytes)
    ready = _in_order(weights, dtype)
    for name, parts in files.items():
        _write_file(directory / name, parts, dtype, ready, advance)
    if len(files) > 1:
        index = {"metadata": {"total_size": sum(_nbytes(part, dtype) for part in tensors(weights.arch))},
                 "weight_map": {part.name: name for name, parts in files.items() for part in parts}}
        (directory / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n")
    copy_companions(weights.companions, directory, dtype)


def plan_files(parts: list[Part], dtype: torch.dtype, shard_bytes: int) -> dict[str, list[Part]]:
    """File name -> its tensors: in order, at most `shard_bytes` a file (a larger tensor stands alone)."""
    groups: list[list[Part]] = [[]]
    size = 0
    for part in parts:
        if groups[-1] and size + _nbytes(part, dtype) > shard_bytes:
            groups.append([])
            size = 0
        groups[-1].append(part)
        size += _nbytes(part, dtype)
    if len(groups) == 1:
        return {"model.safetensors": groups[0]}
    return {f"model-{number:05d}-of-{len(groups):05d}.safetensors": group for number, group in enumerate(groups, 1)}


def header(parts: list[Part], dtype: torch.dtype) -> bytes:
    """What stands before the data: its length, then JSON padded to 8 bytes (safetensors' format page)."""
    entries: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for part in parts:
        entries[part.name] = {"dtype": KIND_OF[dtype], "shape": list(part.shape),
                              "data_offsets": [end, end := end + _nbytes(part, dtype)]}
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def _write_file(path: Path, parts: list[Part], dtype: torch.dtype, ready: Iterator[tuple[Part, Tensor]],
                advance: Callable[[int], None]) -> None:
    with path.open("wb", buffering=0) as file:
        file.write(header(parts, dtype))
        for wanted in parts:
            part, tensor = next(ready)
            assert part == wanted
            _write_all(file, memoryview(tensor.contiguous().flatten().view(torch.uint8).numpy()))
            advance(tensor.nbytes)
        os.fsync(file.fileno())


def _write_all(file: Any, data: memoryview) -> None:
    """A single write ends after 2 GiB."""
    while data:
        data = data[file.write(data):]


def _in_order(weights: Weights, dtype: torch.dtype) -> Iterator[tuple[Part, Tensor]]:
    for slot in slots(weights.arch):
        for part, tensor in zip(slot.entry.parts, weights.tensors(slot), strict=True):
            yield part, tensor.to(dtype)


def _nbytes(part: Part, dtype: torch.dtype) -> int:
    return prod(part.shape) * dtype.itemsize


def _dtype(found: dict[str, Stored]) -> torch.dtype:
    for name, tensor in found.items():
        if tensor.kind not in KINDS:
            raise ModelError(f"{name} in {tensor.file} is of type {tensor.kind}",
                             rule=f"one of {', '.join(KINDS)}", fix="save the model in float32 or bfloat16")
    dtype, other = only_dtype({name: KINDS[tensor.kind] for name, tensor in found.items()})
    if other:
        raise ModelError(f"{other} in {found[other].file} is of type {found[other].kind}, most are {name_of(dtype)}",
                         rule="all tensors of a model have one type (Megatron stacks them)", fix=FIX)
    return dtype
