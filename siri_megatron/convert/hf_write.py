"""Write a Hugging Face directory: safetensors files with their index, config, tokenizer, generation config.

Names, shapes and types are known beforehand, hence so is every file down to the byte: headers are written first, and
each tensor goes to its own place when it is read. (The safetensors library wants all tensors of a file at once.)

Invariants:
- streamed: each of two threads holds one entry, whatever the size of the files.
- as_safetensors: what is written is what safetensors' own reader reads, laid out in the order of `names.tensors`.
"""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from siri_megatron.checkpoint.hf_export import copy_companions
from siri_megatron.convert.grid import Slot, slots
from siri_megatron.convert.source import KINDS, Weights
from siri_megatron.weights.names import Part, tensors

SHARD_BYTES = 5 * 10**9
THREADS = 2
KIND_OF = {dtype: kind for kind, dtype in KINDS.items()}


@dataclass(frozen=True)
class FilePlan:
    """A safetensors file before it exists."""

    name: str
    header: bytes
    places: dict[str, int]
    """Tensor -> where its data begin in the file."""


def write_hf(weights: Weights, directory: Path, dtype: torch.dtype, *, shard_bytes: int = SHARD_BYTES,
             advance: Callable[[int], None]) -> None:
    """Write the files, their index if there are several, and the companions of the source.

    Args:
        directory: existing, empty.
        dtype: of the written tensors.
        advance: told the bytes that were written; called by one thread at a time.
    """
    plans = plan_files(tensors(weights.arch), dtype, shard_bytes)
    _write_tensors(weights, directory, dtype, plans, advance)
    if len(plans) > 1:
        index = {"metadata": {"total_size": sum(_nbytes(part, dtype) for part in tensors(weights.arch))},
                 "weight_map": {name: plan.name for plan in plans for name in plan.places}}
        (directory / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n")
    copy_companions(weights.companions, directory, dtype)


def plan_files(parts: list[Part], dtype: torch.dtype, shard_bytes: int) -> list[FilePlan]:
    """Tensors in order, at most `shard_bytes` of them a file (a larger tensor stands alone)."""
    groups: list[list[Part]] = [[]]
    size = 0
    for part in parts:
        if groups[-1] and size + _nbytes(part, dtype) > shard_bytes:
            groups.append([])
            size = 0
        groups[-1].append(part)
        size += _nbytes(part, dtype)
    if len(groups) == 1:
        return [_plan("model.safetensors", groups[0], dtype)]
    return [_plan(f"model-{number:05d}-of-{len(groups):05d}.safetensors", group, dtype)
            for number, group in enumerate(groups, 1)]


def _plan(name: str, parts: list[Part], dtype: torch.dtype) -> FilePlan:
    """Header: its length, then JSON padded to 8 bytes (the format's own page)."""
    entries: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    ends = {}
    end = 0
    for part in parts:
        ends[part.name] = end
        entries[part.name] = {"dtype": KIND_OF[dtype], "shape": list(part.shape),
                              "data_offsets": [end, end := end + _nbytes(part, dtype)]}
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    header = len(text).to_bytes(8, "little") + text
    return FilePlan(name, header, {name: len(header) + start for name, start in ends.items()})


def _write_tensors(weights: Weights, directory: Path, dtype: torch.dtype, plans: list[FilePlan],
                   advance: Callable[[int], None]) -> None:
    lock = threading.Lock()
    with ExitStack() as stack:
        places: dict[str, tuple[BinaryIO, int]] = {}
        for plan in plans:
            file = stack.enter_context((directory / plan.name).open("wb"))
            file.write(plan.header)
            file.flush()
            places |= {name: (file, start) for name, start in plan.places.items()}

        def write(slot: Slot) -> None:
            for part, tensor in zip(slot.entry.parts, weights.tensors(slot), strict=True):
                file, start = places[part.name]
                _write_at(file.fileno(), start, tensor.to(dtype))
                with lock:
                    advance(_nbytes(part, dtype))

        with ThreadPoolExecutor(THREADS) as pool:
            for _ in pool.map(write, slots(weights.arch)):
                pass
        for file in {file for file, _ in places.values()}:
            os.fsync(file.fileno())


def _write_at(descriptor: int, start: int, tensor: Tensor) -> None:
    """A single write ends after 2 GiB."""
    data = memoryview(tensor.contiguous().flatten().view(torch.uint8).numpy())
    while data:
        written = os.pwrite(descriptor, data, start)
        data, start = data[written:], start + written


def _nbytes(part: Part, dtype: torch.dtype) -> int:
    return prod(part.shape) * dtype.itemsize
