"""megatron-core's CUDA calls mean the CPU inside `megatron_runtime()`, and nothing is left of it outside."""

from __future__ import annotations

import sys
from typing import Any

import pytest
import torch

from siri_megatron.learner.runtime import megatron_runtime

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="the runtime does nothing where CUDA is")


@pytest.mark.parametrize("device", ["cuda", "cuda:0", torch.device("cuda", 0)])
def test_cuda_literals_mean_the_cpu(device: Any) -> None:
    with megatron_runtime():
        made = [torch.zeros(2, device=device), torch.tensor([1.0], device=device), torch.empty(2, device=device),
                torch.arange(3, device=device), torch.ones_like(torch.zeros(2), device=device),
                torch.full((2,), 1.0, device=device, pin_memory=True), torch.zeros(2).to(device),
                torch.zeros(2).to(device=device, dtype=torch.float64), torch.nn.Parameter(torch.zeros(2)).cuda()]
        assert {tensor.device.type for tensor in made} == {"cpu"}
        assert made[-2].dtype == torch.float64
        assert torch.zeros(2).to("meta").is_meta


def test_only_megatrons_optimizers_hear_of_cuda_types() -> None:
    with megatron_runtime():
        tensor = torch.zeros(2)
        asked = compile("tensor.type()", "megatron/core/optimizer/optimizer.py", "eval")
        assert eval(asked, {"tensor": tensor}) == "torch.cuda.FloatTensor"
        assert tensor.type() == "torch.FloatTensor"
        assert tensor.type(torch.float64).dtype == torch.float64


def test_a_default_device_still_holds() -> None:
    """torch remembers its constructors at the first `with torch.device(...)`: it must not remember stand-ins."""
    with megatron_runtime(), torch.device("meta"):
        assert torch.zeros(2).is_meta
        assert torch.nn.Linear(2, 2).weight.is_meta
        assert torch.zeros(2, device="cuda").device.type == "cpu"
    with torch.device("meta"):
        assert torch.ones(2).is_meta


def test_nothing_is_left_outside() -> None:
    before = {name: getattr(torch, name) for name in ("zeros", "tensor", "empty_like")}
    methods = (torch.Tensor.to, torch.Tensor.type, torch.Tensor.cuda)
    with megatron_runtime(), megatron_runtime():
        assert torch.zeros is not before["zeros"]
    assert {name: getattr(torch, name) for name in before} == before
    assert (torch.Tensor.to, torch.Tensor.type, torch.Tensor.cuda) == methods
    with pytest.raises((AssertionError, RuntimeError)):
        torch.zeros(2, device="cuda")


def test_no_python_runs_for_plain_calls() -> None:
    """A TorchFunctionMode would do the same job, at the price of Python in every call into torch."""
    lines = []
    with megatron_runtime():
        left, right = torch.zeros(2), torch.zeros(2)
        sys.setprofile(lambda frame, event, _: lines.append(frame.f_code.co_name) if event == "call" else None)
        try:
            left.add(right).mul(right)
            torch.cat([left, right])
        finally:
            sys.setprofile(None)
    assert not lines
