"""What runs inside a vLLM worker when weights arrive.

vLLM imports this file in every worker (`--worker-extension-cls`); the import registers the back end `siri` with its
native weight-transfer API. Bytes come by one of three transports, chosen by the sender at each connection:

- shared memory: the sender wrote all tensors into one file under /dev/shm, which the worker maps. One host.
- gloo: tensors come in buckets, each broadcast to all workers of the fleet. Any hosts, no GPU needed.
- nccl: the same between GPUs.

All hand Hugging Face names and full tensors to the model's own `load_weights`, inside vLLM's layerwise reload, which
re-packs each layer as at start. With tensor parallelism every worker of an engine receives everything; the model's
loaders cut out its shard.

Traps closed here (vLLM 0.32, CPU):

- tied_head_repacked: a tied `lm_head` keeps its own packed copy of the embedding, which a reload leaves stale.
- no_accelerator_sync: the base class synchronises the accelerator after an update, which raises where there is none.
- nothing_left_behind: a layer for which no tensor came keeps its old weights with only a warning, and a half-filled
  one is packed with garbage; both are refused here.
- fresh_start: after a failed update, tensors already buffered would be counted again in the next one.
- left_open: an update whose sender failed, or is gone, stays open: vLLM has no route to end it without packing, and
  starts no other one. `EngineExtension.abandon_weight_update` is that route.
- no_error_of_others: of several workers none answers an error because somebody else has left the group. vLLM's executor
  would raise the first one's and leave the other answers in their queues, for the next calls to read.
"""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from vllm.distributed.weight_transfer.base import (
    WeightTransferEngine,
    WeightTransferInitInfo,
    WeightTransferUpdateInfo,
)
from vllm.distributed.weight_transfer.factory import WeightTransferEngineFactory
from vllm.model_executor.layers.vocab_parallel_embedding import ParallelLMHead, VocabParallelEmbedding
from vllm.model_executor.model_loader.reload import finalize_layerwise_reload, initialize_layerwise_reload
from vllm.model_executor.model_loader.reload.layerwise import get_layerwise_info
from vllm.utils.nccl import unpinned_nccl_env

from siri_megatron.weights.transfer_group import TransferGroup, Transport, connect, join_store

log = logging.getLogger(__name__)

BACKEND = "siri"
Slot = tuple[str, str, list[int], int]  # name, dtype ("float32"), full shape, byte offset


class EngineExtension:
    """Worker mix-in; its import registers the back end."""

    def abandon_weight_update(self) -> None:
        """Leave the update that a former sender has not finished, if there is one. Nothing is packed; the engine has no
        usable weights until the next one is complete."""
        self._weight_update_active = False  # the worker's own, which it sets back so when a bucket fails


@dataclass
class TransferInit(WeightTransferInitInfo):
    """Where the sender's store is and which ranks this engine's workers take; no host: shared memory."""

    transport: Transport = "gloo"
    host: str = ""
    port: int = 0
    rank_offset: int = 0
    world_size: int = 0
    timeout_s: float = 0.0


@dataclass
class TransferUpdate(WeightTransferUpdateInfo):
    """A bucket: each slot is a tensor's place in `size` bytes, which lie in `path` or are about to be broadcast.

    `timeout_s`: how long the broadcast may take.
    """

    slots: list[Slot]
    size: int
    path: str = ""
    timeout_s: float = 0.0


class WeightReceiver(WeightTransferEngine):
    """Takes buckets of weights into the worker's model; see the module docstring."""

    init_info_cls, update_info_cls = TransferInit, TransferUpdate
    supports_draft_weight_update = False

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.connection: TransferGroup | None = None
        # Taken now, while a tied head counts once: within an update it looks like a parameter of its own.
        self.expected = frozenset(name for name, _ in self.model.named_parameters())
        self.missing: set[str] = set()
        self.broken = ""
        """Why the present group is of no use any more."""

    def init_transfer_engine(self, init_info: TransferInit) -> None:
        """Join the sender's group; connecting again replaces the former one."""
        self.shutdown()
        if not init_info.host:
            return
        try:
            self.connection = self._connected(init_info)
        except RuntimeError as error:
            self._somebody_left(error)

    def _connected(self, init_info: TransferInit) -> TransferGroup:
        store = join_store(init_info.host, init_info.port, init_info.timeout_s)
        with unpinned_nccl_env():  # vLLM sets NCCL variables for its own groups that the sender does not have
            return connect(store, init_info.transport, host=init_info.host,
                           rank=init_info.rank_offset + worker_number(self.parallel_config),
                           world_size=init_info.world_size, timeout_s=init_info.timeout_s)

    def _somebody_left(self, error: RuntimeError) -> None:
        """The group cannot be used. A single worker says so, which ends the update; of several each holds its tongue
        until the next request: the sender, or the engine that is lost, has noticed by itself."""
        if self.parallel_config.world_size == 1:
            raise error
        self.broken = str(error) or type(error).__name__
        log.warning("siri: the group of this push is broken: %s", self.broken)

    def _check_group(self) -> None:
        if self.broken:
            raise RuntimeError(f"the group of this push is broken: {self.broken}")

    def start_weight_update(self) -> None:
        self.missing = set(self.expected)
        initialize_layerwise_reload(self.model)
        for layer in self.model.modules():
            info = get_layerwise_info(layer)
            info.loaded_weights.clear()
            info.load_numel = 0

    def update_weights(self, update_info: dict) -> None:
        self.receive_weights(self.parse_update_info(update_info))
        if self.device.type != "cpu":
            torch.accelerator.synchronize()

    def receive_weights(self, update_info: TransferUpdate) -> None:
        self._check_group()
        flat = map_file(update_info.path, update_info.size) if update_info.path else self.next_bucket(update_info)
        if flat is not None:
            tensors = ((name, tensor.to(self.device)) for name, tensor in unpack(flat, update_info.slots))
            self.missing -= self.model.load_weights(tensors)

    def next_bucket(self, update_info: TransferUpdate) -> torch.Tensor | None:
        """The bytes that the sender broadcasts now, in a new buffer: vLLM keeps views until a layer is complete.
        None: somebody has left."""
        if self.connection is None:
            raise RuntimeError("a bucket was announced before init_weight_transfer_engine gave the sender's address")
        flat = torch.empty(update_info.size, dtype=torch.uint8, device=self.connection.device)
        try:
            self.connection.broadcast(flat, update_info.timeout_s)
        except RuntimeError as error:
            self._somebody_left(error)
            return None
        return flat

    def finish_weight_update(self) -> None:
        self._check_group()
        partial = half_filled(self.model)
        if self.missing or partial:
            raise ValueError(f"push incomplete: no tensor came for {sorted(self.missing)}, too few for {partial}")
        finalize_layerwise_reload(self.model, self.model_config)
        if self.device.type == "cpu":
            repack_heads(self.model)

    def shutdown(self) -> None:
        if self.connection is not None:
            self.connection.close()
        self.connection, self.broken = None, ""


def worker_number(parallel: Any) -> int:
    """Place of this worker among all of its engine: what its rank exceeds the engine's `rank_offset` by.

    As vLLM's own NCCL back end counts (nccl_common.py: worker_init_process_group).
    """
    return int(parallel.data_parallel_index * parallel.world_size + parallel.rank)


def map_file(path: str, size: int) -> torch.Tensor:
    """The bytes of a file, through shared memory. Raises ValueError if it is shorter than announced."""
    if (found := os.path.getsize(path)) < size:
        raise ValueError(f"{path} has {found} bytes, {size} were announced")
    return torch.from_file(path, shared=True, size=size, dtype=torch.uint8)


def unpack(flat: torch.Tensor, slots: list[Slot]) -> Iterator[tuple[str, torch.Tensor]]:
    """Views of the tensors that lie in a byte buffer."""
    for name, dtype_name, shape, offset in slots:
        dtype = getattr(torch, dtype_name)
        size = math.prod(shape) * dtype.itemsize
        yield name, flat[offset:offset + size].view(dtype).view(shape)


def half_filled(model: torch.nn.Module) -> list[str]:
    """Layers that received some but not all of their elements (vocabularies are padded: they never fill up)."""
    found = []
    for name, layer in model.named_modules():
        info = get_layerwise_info(layer)
        partial = info.can_load() and 0 < info.load_numel < (info.load_numel_total or 0)
        if partial and not isinstance(layer, VocabParallelEmbedding):
            found.append(name)
    return found


def repack_heads(model: torch.nn.Module) -> None:
    """Pack the output head anew from its (possibly tied) weight."""
    for layer in model.modules():
        if isinstance(layer, ParallelLMHead):
            layer.quant_method.process_weights_after_loading(layer)


# The registry refuses a name twice; Python imports a module once per process.
WeightTransferEngineFactory.register_engine(BACKEND, WeightReceiver)
