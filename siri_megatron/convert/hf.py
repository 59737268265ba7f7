"""Hugging Face directories as the source of a conversion.

Invariants:
- exactly_these: a directory with a missing, surplus, misshapen or mistyped tensor, or a shard that is cut off, is
  refused by name before anything is written.
- mapped: reading copies nothing that is used as it lies in its file; a mapping lives as long as its tensor.
"""

from __future__ import annotations

from math import prod
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from siri_megatron.convert.grid import Chunk, Slot
from siri_megatron.convert.source import KINDS, name_of, only_dtype
from siri_megatron.errors import ModelError
from siri_megatron.launch.model_files import stored_tensors
from siri_megatron.learner.architecture import Architecture, read_config
from siri_megatron.weights import stored
from siri_megatron.weights.names import Part, tensors
from siri_megatron.weights.shards import local_slices, merge
from siri_megatron.weights.stored import FIX, Stored


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
        """A view into the mapped file, unmapped when the view goes.

        Raises:
            ModelError: the file is gone, or has become shorter.
        """
        path = self._files[part.name]
        try:
            with safe_open(path, framework="pt") as file:
                return file.get_slice(part.name)[box]
        except (SafetensorError, OSError) as error:
            raise ModelError(f"{part.name} in {path} cannot be read: {error}",
                             rule="a source stays as it is until the conversion ends", fix=FIX) from None

    def _check_tied_copy(self) -> None:
        """Some writers store the output layer of a tied model too: fine if it is the embedding."""
        embedding = tensors(self.arch)[0]
        if not torch.equal(self._slice(embedding, ...), self._slice(Part(stored.HEAD, embedding.shape), ...)):
            raise ModelError(f"{stored.HEAD} differs from {embedding.name}, but config.json ties them",
                             rule="tie_word_embeddings=true: both are one tensor",
                             fix="set tie_word_embeddings to false")


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
