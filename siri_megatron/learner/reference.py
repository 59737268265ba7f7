"""The frozen reference of the KL term: the run's starting weights, kept on the host and swapped in for a forward pass.

The copy is this rank's part of the model, taken when the weights of `model.path` have just been loaded: a resumed run
loads them too before it restores its checkpoint, so the reference is in no checkpoint.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor


class Reference:
    """The starting weights of this rank's model chunks."""

    def __init__(self, chunks: list[Any]) -> None:
        self._parameters = [parameter for chunk in chunks for parameter in chunk.parameters()]
        self._host = [_on_host(parameter) for parameter in self._parameters]

    @contextmanager
    def swapped_in(self) -> Iterator[None]:
        """The model has the reference's weights inside, and its own again, to the bit, after.

        In place, tensor by tensor, so the device never holds a second model. Parameters must be whole on entry: after
        an optimizer step with overlapped parameter gathers, they are only once the gathers are done.
        """
        self._swap()
        try:
            yield
        finally:
            self._swap()

    @torch.no_grad()
    def _swap(self) -> None:
        for parameter, host in zip(self._parameters, self._host, strict=True):
            other = parameter.detach().clone()
            parameter.copy_(host)
            host.copy_(other)


def _on_host(parameter: Tensor) -> Tensor:
    host = torch.empty(parameter.shape, dtype=parameter.dtype, pin_memory=parameter.is_cuda)
    return host.copy_(parameter.detach())
