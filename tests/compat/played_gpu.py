"""Transformer Engine's own Python sources on a machine without a GPU: everything up to its compiled kernels.

What is compiled (its C++ extension, its triton kernels) or not installed (the ONNX exporter) is replaced by empty
modules, so its layers can be made, with their real names, shapes and marks, but not run. Use a process of its own.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

import torch

NOT_HERE = ("transformer_engine_torch", "transformer_engine.pytorch.onnx_extensions", *(
    f"transformer_engine.pytorch.triton{name}"
    for name in ("", ".permutation", ".cross_entropy", ".pad", ".mhc", ".grouped_dbias_dscales")))


class Numbered(type):
    """A class whose every attribute is a number of its own: stands for the C++ enumerations."""

    def __getattr__(cls, name: str) -> Any:
        seen = cls.__dict__.get("seen", {})
        if name == "__members__":
            return seen
        if name.startswith("__"):
            raise AttributeError(name)
        cls.seen = seen
        return seen.setdefault(name, len(seen))


class Empty(ModuleType):
    """A module that has every name."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.__spec__, self.__path__ = ModuleSpec(name, None), []

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        setattr(self, name, Numbered(name, (), {"__init__": lambda self, *_, **__: None}))
        return vars(self)[name]


def import_transformer_engine() -> Any:
    """`transformer_engine.pytorch` from the sources on the path. Before megatron-core is imported."""
    from siri_megatron.learner.runtime import eager_imports
    os.environ["NVTE_PROJECT_BUILDING"] = "1"  # its own switch: load no CUDA library
    sys.modules.update((name, Empty(name)) for name in NOT_HERE)
    import transformer_engine.common as common
    common.load_framework_extension = lambda _: None
    with eager_imports():
        import transformer_engine.pytorch as engine
    return engine


@contextmanager
def played_gpu(device: str) -> Iterator[None]:
    """The learner believes in a GPU, whose memory is `device` ("cpu", or "meta" for none)."""
    from siri_megatron.learner import model
    from siri_megatron.learner.runtime import megatron_runtime
    with megatron_runtime(), torch.device(device):
        saved = torch.cuda.is_available, torch.cuda.current_device, torch.cuda.get_device_capability, model.device
        stream, torch.cuda.Stream = torch.cuda.Stream, object  # of the context-parallel ring
        torch.cuda.is_available = lambda: True
        torch.cuda.current_device = model.device = lambda: torch.device(device)
        torch.cuda.get_device_capability = lambda *_: (9, 0)
        try:
            yield
        finally:
            torch.cuda.is_available, torch.cuda.current_device, torch.cuda.get_device_capability, model.device = saved
            torch.cuda.Stream = stream
