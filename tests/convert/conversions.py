"""Conversions for tests, in one line each."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from safetensors import safe_open

from siri_megatron.convert.convert import Options, hf_to_megatron, megatron_to_hf
from siri_megatron.convert.hf_write import SHARD_BYTES


def quiet(_what: str, _total: int) -> Callable[[int], None]:
    return lambda _: None


def there(model: Path, checkpoint: Path, *, tp: int = 1, pp: int = 1, dtype: torch.dtype | None = None,
          verify: bool = False) -> Path:
    hf_to_megatron(model, checkpoint, tp=tp, pp=pp, options=Options(dtype, verify, force=True), progress=quiet)
    return checkpoint


def back(checkpoint: Path, model: Path, *, hf: Path | None = None, verify: bool = False,
         shard_bytes: int = SHARD_BYTES) -> Path:
    megatron_to_hf(checkpoint, model, hf=hf, shard_bytes=shard_bytes, options=Options(None, verify, force=True),
                   progress=quiet)
    return model


def loaded(path: Path) -> dict[str, torch.Tensor]:
    """All tensors, by safetensors' own reader."""
    state = {}
    for file in sorted(path.glob("*.safetensors")):
        with safe_open(file, framework="pt") as opened:
            state |= {name: opened.get_tensor(name).clone() for name in opened.keys()}  # noqa: SIM118 - no mapping
    return state


def bits_equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(
        one[name].dtype == other[name].dtype and one[name].shape == other[name].shape
        and torch.equal(one[name].view(torch.uint8), other[name].view(torch.uint8)) for name in one)


def siblings(path: Path) -> list[str]:
    """Everything beside `path`, hidden names too."""
    return sorted(item.name for item in path.parent.iterdir())
