"""What a virtual pipeline needs beside megatron-core's schedule: shape messages that cannot cross, and a batch a chunk.

With several chunks on a rank, a stage sends activations forward and gradients backward in one exchange. At PP=2 the
next and the previous stage are the same peer, and `P2PCommunicator._communicate_shapes` puts the shapes of both
directions into one batch on one group, where messages between two ranks are matched in their order: each side takes
the other's backward shape for its forward shape (gloo then refuses the tensors, `EnforceNotMet`; NCCL matches in order
too). Megatron-LM asks for equal shapes there, or for three stages. `_p2p_ops`, by which megatron-core sends the tensors
themselves, has a group for each direction; `TwoWayShapes` sends the shapes the same way. On CPU and GPU alike.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import tee
from typing import Any

import torch
from torch import Tensor

from siri_megatron.learner.batch import Batch
from siri_megatron.learner.mcore import P2PCommunicator, ProcessGroupCollection, p2p_ops, parallel_state

GROUPS = ["tp", "cp", "pp", "embd", "pos_embd", "dp_cp"]
"""The process groups that a schedule asks for when it is given a communicator."""
NO_SHAPE = [0, 0, 0]


class TwoWayShapes(P2PCommunicator):
    """Stages tell each other the shapes of what they send, each direction on a group of its own."""

    def _communicate_shapes(self, tensor_send_next: Tensor | None, tensor_send_prev: Tensor | None, recv_prev: bool,
                            recv_next: bool) -> tuple[list[int], list[int]]:
        """Shapes of what will come from the previous and from the next stage; zeros where nothing will."""
        from_prev, from_next = _room(recv_prev), _room(recv_next)
        to_prev, to_next = _shape(tensor_send_prev), _shape(tensor_send_next)
        requests = p2p_ops(tensor_send_prev=to_prev, tensor_recv_prev=from_prev, tensor_send_next=to_next,
                           tensor_recv_next=from_next, group=self.pp_group, prev_pipeline_rank=self.prev_rank,
                           next_pipeline_rank=self.next_rank)
        for request in requests.values():
            request.wait()
        return (NO_SHAPE if from_prev is None else from_prev.tolist(),
                NO_SHAPE if from_next is None else from_next.tolist())


def communication(config: Any) -> dict[str, Any]:
    """Arguments of the schedule that make it use `TwoWayShapes`; none without a virtual pipeline."""
    if config.virtual_pipeline_model_parallel_size is None:
        return {}
    return {"p2p_communicator": TwoWayShapes(parallel_state.get_pipeline_model_parallel_group(), config),
            "pg_collection": ProcessGroupCollection.use_mpu_process_groups(GROUPS)}


def streams(batches: Iterable[Batch], chunks: int) -> Iterator[Batch] | list[Iterator[Batch]]:
    """The micro-batches for each chunk of the rank: every chunk reads them all, and each is made once."""
    return iter(batches) if chunks == 1 else list(tee(batches, chunks))


def _shape(tensor: Tensor | None) -> Tensor | None:
    return None if tensor is None else torch.tensor(tensor.shape, dtype=torch.int64, device=tensor.device)


def _room(wanted: bool) -> Tensor | None:
    return torch.empty(3, dtype=torch.int64, device=torch.cuda.current_device()) if wanted else None
