"""The reference's weights are inside during the pass, the policy's own before and after, to the bit."""

from __future__ import annotations

import pytest
import torch

from siri_megatron.learner.reference import Reference


def bits(model: torch.nn.Module) -> list[torch.Tensor]:
    return [parameter.detach().clone() for parameter in model.parameters()]


def same(one: list[torch.Tensor], other: list[torch.Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_swapped_in_and_out(dtype: torch.dtype) -> None:
    model = torch.nn.Linear(5, 3).to(dtype)
    start, places = bits(model), [parameter.data_ptr() for parameter in model.parameters()]
    reference = Reference([model])
    for _ in range(2):  # the second time finds the reference unchanged
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter))
        own = bits(model)
        with reference.swapped_in():
            assert same(bits(model), start)
        assert same(bits(model), own)
        assert not same(own, start)
    assert [parameter.data_ptr() for parameter in model.parameters()] == places, "buffers hold the parameters"


def test_a_pass_that_fails_gives_the_weights_back() -> None:
    model = torch.nn.Linear(5, 3)
    reference = Reference([model])
    with torch.no_grad():
        model.weight.add_(1)
    own = bits(model)
    with pytest.raises(RuntimeError, match="boom"), reference.swapped_in():
        raise RuntimeError("boom")
    assert same(bits(model), own)
