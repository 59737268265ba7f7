"""Context parallelism: the ranks that hold the parts of the same rows (`batching.context` says which part each).

Weights of tokens hold the whole denominator, so losses, gradients and statistics of the parts are simply added, as they
are over data-parallel ranks (megatron-core's DDP reduces over both). Only what looks at a sample as a whole needs more:
attention (`learner.attention`; Transformer Engine has its own), sums over a sample (`total`), log-probs in the order of
the response (`whole`).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.nn.functional import all_reduce

from siri_megatron.batching.context import zigzag
from siri_megatron.learner.mcore import gather_from_sequence_parallel_region, parallel_state


@dataclass(frozen=True)
class ContextRanks:
    """This rank among those that hold the other parts of its rows; the default is alone."""

    rank: int = 0
    size: int = 1
    group: dist.ProcessGroup | None = None

    @classmethod
    def here(cls) -> ContextRanks:
        """Those of megatron's parallel state."""
        group = parallel_state.get_context_parallel_group()
        return cls(dist.get_rank(group), dist.get_world_size(group), group)

    def total(self, values: Tensor) -> Tensor:
        """Sum over the ranks, with gradient: each rank's loss depends on every rank's values."""
        return values if self.size == 1 else all_reduce(values, group=self.group)

    def whole(self, values: Tensor, order: Tensor) -> Tensor:
        """[b, s] this rank's part -> [b, s x size], without gradient. order: [b x s x size] as in `Batch`."""
        pieces = [torch.empty_like(values) for _ in range(self.size)]
        dist.all_gather(pieces, values.contiguous(), group=self.group)
        flat = torch.cat([piece.flatten() for piece in pieces])
        return torch.empty_like(flat).index_copy_(0, order, flat).view(len(values), -1)

    def whole_sequence(self, values: Tensor, place: Tensor) -> Tensor:
        """[s, ...] -> [s x size, ...] in the order of the sequence.

        Its backward sums the ranks' gradients of each token (reduce-scatter): all of them attend to it.

        Args:
            place: [s x size] where each token of the sequence stands in the ranks' parts, one after another.
        """
        return gather_from_sequence_parallel_region(values, group=self.group).index_select(0, place)


ALONE = ContextRanks()


@lru_cache(maxsize=64)
def padded_row(width: int, size: int, rank: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """For padded sequences: [width] `place` of `whole_sequence`, and [width / size] the tokens of this rank."""
    order = zigzag(np.array([width]), size)
    return places(order).to(device), torch.from_numpy(order[rank]).to(device)


def places(order: np.ndarray) -> Tensor:
    """Where each token of a row stands in the ranks' parts, one after another. order: of `zigzag`."""
    return torch.from_numpy(np.argsort(order.ravel()))
