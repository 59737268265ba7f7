"""Plain Hugging Face directories: what a run gives to the world, loadable by transformers and vLLM.

Invariants:

- plain: config, generation config and tokenizer of the starting model, and safetensors under Hugging Face names; an
  index only when there are several files. Code of the starting model is not copied.
- atomic: the directory appears whole under its name; a killed export leaves a hidden one, removed by the next.
- streamed: at most one shard of `shard_bytes` is held in memory.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors.torch import save_file

from siri_megatron.errors import ModelError
from siri_megatron.files import replace_directory, sync_path

SHARD_BYTES = 4 * 2**30
# Beside the weights, a model directory is these; anything else (code, other formats, notes) is left behind.
COMPANIONS = ("config.json", "generation_config.json", "tokenizer*", "special_tokens_map.json", "added_tokens.json",
              "vocab*", "merges.txt", "chat_template*", "preprocessor_config.json", "*.model", "LICENSE*")


class ExportSource(Protocol):
    """What an export needs of a learner."""

    is_rank0: bool

    def export_tensors(self) -> Iterator[tuple[str, torch.Tensor]]: ...


def export_hf(learner: ExportSource, source: Path, destination: Path, *, shard_bytes: int = SHARD_BYTES) -> None:
    """Write the learner's weights with the companions of the model directory `source`. Collective.

    An existing destination is replaced.

    Raises:
        ModelError: `source` has no config.json.
    """
    tensors = learner.export_tensors()
    try:
        if learner.is_rank0:
            _write_directory(tensors, source, destination, shard_bytes)
    finally:
        for _ in tensors:  # the gathers behind the export must complete on every rank, whatever rank 0 met
            pass


def _write_directory(tensors: Iterator[tuple[str, torch.Tensor]], source: Path, destination: Path,
                     shard_bytes: int) -> None:
    part = destination.with_name(f".{destination.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    dtype = write_weights(tensors, part, shard_bytes)
    copy_companions(source, part, dtype)
    for path in (part, *part.iterdir()):
        sync_path(path)
    replace_directory(part, destination)


def write_weights(tensors: Iterator[tuple[str, torch.Tensor]], directory: Path, shard_bytes: int) -> torch.dtype:
    """Write safetensors files (and their index if there are several); returns the dtype of the weights."""
    files: list[list[str]] = []
    total, dtype = 0, torch.float32
    for shard in shards(tensors, shard_bytes):
        files.append(list(shard))
        total += sum(tensor.nbytes for tensor in shard.values())
        dtype = next(iter(shard.values())).dtype
        save_file(shard, directory / f"part-{len(files)}", metadata={"format": "pt"})
    # Names say how many files there are, which is known only now.
    names = ["model.safetensors"] if len(files) == 1 else [
        f"model-{number:05d}-of-{len(files):05d}.safetensors" for number in range(1, len(files) + 1)]
    for number, name in enumerate(names, 1):
        os.rename(directory / f"part-{number}", directory / name)
    if len(files) > 1:
        placed = {tensor: name for name, held in zip(names, files, strict=True) for tensor in held}
        index = {"metadata": {"total_size": total}, "weight_map": placed}
        (directory / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n")
    return dtype


def shards(tensors: Iterator[tuple[str, torch.Tensor]], limit: int) -> Iterator[dict[str, torch.Tensor]]:
    """Tensors in order, in groups of at most `limit` bytes (a larger tensor stands alone)."""
    shard: dict[str, torch.Tensor] = {}
    size = 0
    for name, tensor in tensors:
        if shard and size + tensor.nbytes > limit:
            yield shard
            shard, size = {}, 0
        shard[name] = tensor.detach().cpu().contiguous().clone()  # safetensors refuses tensors that share memory
        size += tensor.nbytes
    if shard:
        yield shard


def copy_companions(source: Path, destination: Path, dtype: torch.dtype) -> None:
    """Copy everything but the weights; config.json gets the dtype of the weights that were written.

    Raises:
        ModelError: there is no config.json in `source`.
    """
    if not (source / "config.json").is_file():
        raise ModelError(f"model directory {source} has no config.json",
                         rule="an export carries the model's own config",
                         fix="point model.path at a Hugging Face directory")
    for pattern in COMPANIONS:
        for file in source.glob(pattern):
            if file.is_file():
                shutil.copyfile(file, destination / file.name)
    config: dict[str, Any] = json.loads((source / "config.json").read_text())
    key = "dtype" if "dtype" in config else "torch_dtype"  # transformers 5 and 4
    config[key] = str(dtype).removeprefix("torch.")
    (destination / "config.json").write_text(json.dumps(config, indent=2) + "\n")
