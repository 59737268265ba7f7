"""Tensors, bucket by bucket: what a sender takes from an export. Holds one tensor ahead, and nothing that was taken.

Invariants:
- order_kept: tensors leave in the order in which they came.
- bounded: a bucket takes at most `limit` bytes; a larger tensor travels alone.
- aligned: every tensor starts at a multiple of ALIGNMENT, because it is read in place.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch

Slot = tuple[str, str, list[int], int]  # name, dtype ("float32"), full shape, byte offset
ALIGNMENT = 64


class Feed:
    """An export that is dealt out bucket by bucket."""

    def __init__(self, tensors: Iterator[tuple[str, torch.Tensor]]) -> None:
        self._tensors = tensors
        self._ahead = next(tensors, None)

    @property
    def next_bytes(self) -> int:
        """Of the tensor that comes next; 0 at the end."""
        return self._ahead[1].nbytes if self._ahead else 0

    def fill(self, limit: int, write: Callable[[int, torch.Tensor], object]) -> tuple[list[Slot], int]:
        """Hand over the next bucket: `write(offset, bytes)` for each tensor.

        Returns:
            Where each tensor lies, and the size of the bucket; nothing and 0 at the end.
        """
        slots: list[Slot] = []
        size = 0
        while self._ahead is not None and (not slots or size + self.next_bytes <= limit):
            name, tensor = self._ahead
            write(size, as_bytes(tensor))
            slots.append((name, str(tensor.dtype).removeprefix("torch."), list(tensor.shape), size))
            size += -(-tensor.nbytes // ALIGNMENT) * ALIGNMENT
            self._ahead = tensor = None  # let go of it before the next one is made
            self._ahead = next(self._tensors, None)
        return slots, size


def as_bytes(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor's bytes, flat, where it lies; a view if it is contiguous."""
    return tensor.detach().contiguous().reshape(-1).view(torch.uint8)
