"""What a conversion reads from: weights of either format behind one small interface.

`tensors` serves whole Hugging Face tensors (writing a Hugging Face directory, comparing), `chunk` serves boxes of
Megatron's global tensors (writing a checkpoint). Neither holds more than it returns.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from siri_megatron.convert.grid import Chunk, Slot
from siri_megatron.learner.architecture import Architecture

KINDS = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}
"""safetensors' names of the types that weights may have."""


class Weights(Protocol):
    """A checked source; read-only."""

    path: Path
    companions: Path
    """Directory with config.json, tokenizer and generation config."""
    config: dict[str, Any]
    """config.json."""
    arch: Architecture
    dtype: torch.dtype
    """Of every tensor."""

    def tensors(self, slot: Slot) -> list[Tensor]:
        """The whole tensors that the entry is made of, in the order of its parts."""

    def chunk(self, chunk: Chunk) -> Tensor:
        """A contiguous box of the global tensor; rows that pad the vocabulary are zero."""


def only_dtype(found: dict[str, torch.dtype]) -> tuple[torch.dtype, str]:
    """The one type of all tensors, or the first tensor that differs from the most frequent type ("" if none does)."""
    kinds = list(found.values())
    most = max(set(kinds), key=kinds.count)
    return most, next((name for name, kind in found.items() if kind != most), "")


def name_of(dtype: torch.dtype) -> str:
    """E.g. bfloat16."""
    return str(dtype).removeprefix("torch.")
