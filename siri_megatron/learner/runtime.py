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
from functools import wraps
from typing import Any

import torch
from torch.utils._device import _device_constructors

CPU = torch.device("cpu")
LIKE = (torch.empty_like, torch.full_like, torch.ones_like, torch.rand_like, torch.randn_like, torch.zeros_like)
"""Constructors that torch's own list leaves out."""

# What megatron's optimizers expect `Tensor.type()` to say of a parameter.
CUDA_TYPE_NAMES = {f"torch.{kind}Tensor": f"torch.cuda.{kind}Tensor" for kind in ("Float", "BFloat16", "Half")}


@contextmanager
def megatron_runtime() -> Iterator[None]:
    """Give megatron-core's CUDA calls a CPU meaning. A no-op where CUDA is available."""
    if torch.cuda.is_available():
        yield
        return
    with ExitStack() as stack:
        for owner, name, stand_in in (*_stand_ins(), *cuda_literals_to_cpu()):
            stack.enter_context(_replaced(owner, name, stand_in))
        yield


@contextmanager
def eager_imports() -> Iterator[None]:
    """`torch.compile` returns its argument: for importing megatron-core on CPU, where no fusion is used."""
    if torch.cuda.is_available():
        yield
        return
    with _replaced(torch, "compile", _leave_eager):
        yield


def cuda_literals_to_cpu() -> list[tuple[Any, str, Any]]:
    """(owner, name, what stands in for it) so that `device="cuda"`, `pin_memory=True` and `.cuda()` mean the CPU, and
    megatron's optimizers hear the names of CUDA types.

    Not a TorchFunctionMode, which would do the same in ten lines: it runs Python for every call into torch, a tenth of
    a train step of small micro-batches. Asking torch for its list of constructors also fills the cache behind
    `with torch.device(...)`, which must know the constructors themselves and not their stand-ins.
    """
    constructors = [(torch, function.__name__, _on_cpu(function)) for function in (*_device_constructors(), *LIKE)
                    if _is_torchs_own(function)]
    to, type_of = torch.Tensor.to, torch.Tensor.type

    def move(tensor: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        args = (CPU, *args[1:]) if args and _is_cuda(args[0]) else args
        return to(tensor, *args, **(kwargs | {"device": CPU} if _is_cuda(kwargs.get("device")) else kwargs))

    def type_name(tensor: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        if args or kwargs:
            return type_of(tensor, *args, **kwargs)
        asker = sys._getframe(1).f_code.co_filename
        name = type_of(tensor)
        return CUDA_TYPE_NAMES.get(name, name) if "megatron/core/optimizer" in asker else name

    return [*constructors, (torch.Tensor, "cuda", lambda tensor, *_, **__: tensor), (torch.Tensor, "to", move),
            (torch.Tensor, "type", type_name)]


def _is_torchs_own(function: Callable[..., Any]) -> bool:
    """`torch.name` itself: not of a submodule such as torch.fft, and not replaced already (a second entry)."""
    return vars(torch).get(function.__name__) is function


def _on_cpu(function: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    """A constructor that knows neither CUDA nor pinned memory."""
    @wraps(function)
    def construct(*args: Any, **kwargs: Any) -> torch.Tensor:
        if _is_cuda(kwargs.get("device")):
            kwargs["device"] = CPU
        if kwargs.get("pin_memory"):
            kwargs["pin_memory"] = False
        return function(*args, **kwargs)
    return construct


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
