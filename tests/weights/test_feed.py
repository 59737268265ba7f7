"""The invariants of `weights/feed.py`."""

from __future__ import annotations

from math import prod

import torch
from hypothesis import given
from hypothesis import strategies as st

from siri_megatron.weights.feed import ALIGNMENT, Feed

SHAPES = st.lists(st.lists(st.integers(1, 9), min_size=1, max_size=3), min_size=1, max_size=12)
DTYPES = st.sampled_from([torch.float32, torch.bfloat16])


@given(shapes=SHAPES, dtype=DTYPES, limit=st.integers(1, 3000))
def test_order_kept_bounded_aligned(shapes: list[list[int]], dtype: torch.dtype, limit: int) -> None:
    tensors = [(f"t{i}", torch.randn(shape).to(dtype)) for i, shape in enumerate(shapes)]
    feed, found, taken = Feed(iter(tensors)), [], []
    while True:
        flat = torch.zeros(sum(4 * prod(shape) + ALIGNMENT for shape in shapes), dtype=torch.uint8)
        slots, size = feed.fill(limit, lambda offset, data, flat=flat: flat[offset:offset + len(data)].copy_(data))
        if not slots:
            break
        taken.append((len(slots), slots[-1][3] + flat_bytes(slots[-1][2], dtype)))
        assert size % ALIGNMENT == 0
        for name, kind, shape, offset in slots:
            assert offset % ALIGNMENT == 0
            found.append((name, flat[offset:offset + flat_bytes(shape, dtype)].view(getattr(torch, kind)).view(shape)))
    assert [name for name, _ in found] == [name for name, _ in tensors]
    assert all(torch.equal(got, sent) for (_, got), (_, sent) in zip(found, tensors, strict=True))
    assert all(used <= limit or count == 1 for count, used in taken)
    assert feed.next_bytes == 0


def flat_bytes(shape: list[int], dtype: torch.dtype) -> int:
    return prod(shape) * dtype.itemsize


def test_transposed_tensor_is_sent_in_its_own_order() -> None:
    """A view is not contiguous: its bytes in memory are another tensor's."""
    tensor = torch.arange(6.0).view(2, 3).t()
    flat = torch.zeros(ALIGNMENT, dtype=torch.uint8)
    Feed(iter([("t", tensor)])).fill(99, lambda offset, data: flat[offset:offset + len(data)].copy_(data))
    assert torch.equal(flat[:24].view(torch.float32).view(3, 2), tensor)
    assert not torch.equal(flat[:24].view(torch.float32), torch.arange(6.0))
