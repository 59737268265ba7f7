"""The benchmark of a step's operators: its FLOP/s are those of the products it saw, and each kind has its time."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tools" / "bench"))
import operators as bench


def test_products_attention_and_the_rest_are_told_apart() -> None:
    import torch
    import torch.nn.functional as F  # noqa: N812
    one, heads = torch.ones(64, 32), torch.ones(1, 2, 16, 8)

    def step() -> None:
        one @ one.T
        F.scaled_dot_product_attention(heads, heads, heads, is_causal=True)
        torch.exp(one)

    seconds, speed = bench.profiled(step)
    assert set(seconds) == {"matrix products", "attention", "the rest"}
    assert all(part > 0 for part in seconds.values())
    assert speed * seconds["matrix products"] == pytest.approx(2 * 64 * 32 * 64)
