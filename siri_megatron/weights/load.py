"""Stream the weights of a Hugging Face directory into this rank's shards; of each tensor only its slice is read.

Everything that is wrong with a directory is refused by the tensor's name, before anything is trained on it: a tensor
that is missing, that the architecture has no place for, of the wrong shape or type, or with a value that is not finite.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from siri_megatron.errors import ModelError
from siri_megatron.learner.architecture import Architecture
from siri_megatron.learner.mcore import parallel_state
from siri_megatron.weights import stored
from siri_megatron.weights.names import Part, stage_entries, tied_head, virtual_stage
from siri_megatron.weights.shards import local_slices, merge, parameters
from siri_megatron.weights.stored import FIX

INDEX, SINGLE = "model.safetensors.index.json", "model.safetensors"


def load_hf(chunks: list[Any], arch: Architecture, model_dir: Path) -> None:
    """Fill the rank's chunks from a directory of safetensors files.

    Raises:
        ModelError: a file cannot be read, or a tensor is missing, surplus, of the wrong shape or type, or not finite.
    """
    tp, tp_rank = (parallel_state.get_tensor_model_parallel_world_size(),
                   parallel_state.get_tensor_model_parallel_rank())
    pp, pp_rank = (parallel_state.get_pipeline_model_parallel_world_size(),
                   parallel_state.get_pipeline_model_parallel_rank())
    files = tensor_files(model_dir)
    check_names(files, arch, model_dir)
    stages = pp * len(chunks)
    for number, chunk in enumerate(chunks):
        stage = virtual_stage(number, pp_rank, pp)
        entries = stage_entries(arch, stage, stages) + tied_head(arch, stage, stages)
        for entry, parameter in zip(entries, parameters(chunk, entries), strict=True):
            slices = [read_slice(files[part.name], part, local_slices(entry, part, arch, tp_rank, tp))
                      for part in entry.parts]
            with torch.no_grad():
                parameter.copy_(merge(entry, slices, arch, tp))


def tensor_files(model_dir: Path) -> dict[str, Path]:
    """Which file holds each tensor: read from the index of a sharded model, or from the single file's header."""
    index = model_dir / INDEX
    if index.is_file():
        try:
            names = json.loads(index.read_text())["weight_map"]
        except (ValueError, KeyError, TypeError) as error:
            raise ModelError(f"{index} is not an index: {error!r}", rule="JSON with a weight_map", fix=FIX) from None
        return {name: model_dir / file for name, file in names.items()}
    single = model_dir / SINGLE
    if not single.is_file():
        others = sorted(path.name for path in model_dir.glob("*.bin"))
        raise ModelError(f"{model_dir} has no {SINGLE} and no {INDEX}" + (f", but {others[0]}" if others else ""),
                         rule="weights are safetensors files", fix=FIX)
    with _opened(single) as file:
        return dict.fromkeys(file.keys(), single)


def read_slice(path: Path, part: Part, slices: tuple[slice, ...]) -> Tensor:
    """A slice of a tensor; checks its full shape, its type, and that the slice is finite."""
    with _opened(path) as file:
        whole = file.get_slice(part.name)
        stored.check_tensor(part, stored.Stored(path, tuple(whole.get_shape()), whole.get_dtype()))
        value = whole[slices]
    if not bool(torch.isfinite(value).all()):
        raise ModelError(f"{part.name} in {path} holds values that are not finite", rule="weights are finite", fix=FIX)
    return value


def check_names(files: dict[str, Path], arch: Architecture, model_dir: Path) -> None:
    """Exactly the tensors of the architecture; a copy of a tied output layer is one.

    Raises:
        ModelError: names what is missing or surplus.
    """
    stored.check_names(files, arch, model_dir)
    if arch.tied and stored.HEAD in files:
        _check_tied_copy(files)


def _check_tied_copy(files: dict[str, Path]) -> None:
    """Some writers store the output layer of a tied model too: fine if it is the embedding."""
    copies = []
    for name in (stored.HEAD, "model.embed_tokens.weight"):
        with _opened(files[name]) as file:
            copies.append(file.get_tensor(name))
    if not torch.equal(*copies):
        raise ModelError("lm_head.weight differs from model.embed_tokens.weight, but config.json ties them",
                         rule="tie_word_embeddings=true: both are one tensor", fix="set tie_word_embeddings to false")


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    try:
        with safe_open(path, framework="pt") as file:
            yield file
    except (SafetensorError, OSError) as error:
        raise ModelError(f"{path} cannot be read: {error}", rule="a whole safetensors file", fix=FIX) from None
