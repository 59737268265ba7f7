"""Run unmodified megatron-core on CPU and gloo. On a machine with CUDA everything here does nothing.

megatron-core assumes a GPU in a few places: it calls `torch.cuda.*` unconditionally, writes `device="cuda"` into
tensor constructors, compares type names with `"torch.cuda.FloatTensor"`, and decorates fusions with `torch.compile`.
`megatron_runtime()` gives those calls a CPU meaning for as long as it is entered, and takes it back afterwards; nothing
of megatron-core is edited. `eager_imports()` keeps the decorators from loading the compiler (2 s of every start).
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

CPU = torch.device("cpu")

# What megatron's optimizers expect `Tensor.type()` to say of a parameter.
CUDA_TYPE_NAMES = {f"torch.{kind}Tensor": f"torch.cuda.{kind}Tensor" for kind in ("Float", "BFloat16", "Half")}


@contextmanager
def megatron_runtime() -> Iterator[None]:
    """Give megatron-core's CUDA calls a CPU meaning. A no-op where CUDA is available."""
    if torch.cuda.is_available():
        yield
        return
    with ExitStack() as stack:
        for owner, name, stand_in in _stand_ins():
            stack.enter_context(_replaced(owner, name, stand_in))
        stack.enter_context(CudaLiteralsToCpu())
        yield


@contextmanager
def eager_imports() -> Iterator[None]:
    """`torch.compile` returns its argument: for importing megatron-core on CPU, where no fusion is used."""
    if torch.cuda.is_available():
        yield
        return
    with _replaced(torch, "compile", _leave_eager):
        yield


class CudaLiteralsToCpu(TorchFunctionMode):
    """Rewrites `device="cuda"`, `.cuda()`, `pin_memory=True` and, for megatron's optimizers, the names of types."""

    def __torch_function__(self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.Tensor.cuda:
            return args[0]
        if func is torch.Tensor.type and len(args) == 1 and not kwargs:
            return _type_name(func(*args))
        if kwargs:
            if _is_cuda(kwargs.get("device")):
                kwargs = {**kwargs, "device": CPU}
            if kwargs.get("pin_memory"):
                kwargs = {**kwargs, "pin_memory": False}
        if func is torch.Tensor.to and len(args) > 1 and _is_cuda(args[1]):
            args = (args[0], CPU, *args[2:])
        return func(*args, **(kwargs or {}))


def _type_name(name: str) -> str:
    """Only callers in megatron's optimizer package hear of CUDA: two frames up is who asked."""
    asker = sys._getframe(2).f_code.co_filename
    return CUDA_TYPE_NAMES.get(name, name) if "megatron/core/optimizer" in asker else name


def _is_cuda(device: Any) -> bool:
    if isinstance(device, str):
        return device.startswith("cuda")
    return isinstance(device, torch.device) and device.type == "cuda"


def _leave_eager(function: Any = None, **_: Any) -> Any:
    return function if function is not None else _leave_eager


def _stand_ins() -> list[tuple[Any, str, Any]]:
    """(module, name, what stands in for it on CPU)"""
    from siri_megatron.learner.mcore import megatron_random  # imports this module

    def get_state(*_: Any, **__: Any) -> torch.Tensor:
        return torch.get_rng_state()

    def set_state(state: torch.Tensor, *_: Any, **__: Any) -> None:
        torch.set_rng_state(state)

    cuda, cuda_random = torch.cuda, torch.cuda.random
    return [
        (cuda, "current_device", lambda: CPU),
        (cuda, "synchronize", lambda *_: None),
        (cuda, "current_stream", lambda *_: None),  # 0.19 asks for it before it reduces gradients, without need of it
        (cuda, "get_rng_state", get_state), (cuda_random, "get_rng_state", get_state),
        (cuda, "set_rng_state", set_state), (cuda_random, "set_rng_state", set_state),
        (cuda, "manual_seed", torch.manual_seed),
        (megatron_random, "_get_cuda_rng_state", get_state), (megatron_random, "_set_cuda_rng_state", set_state),
    ]


@contextmanager
def _replaced(owner: Any, name: str, stand_in: Any) -> Iterator[None]:
    original = getattr(owner, name)
    setattr(owner, name, stand_in)
    try:
        yield
    finally:
        setattr(owner, name, original)
