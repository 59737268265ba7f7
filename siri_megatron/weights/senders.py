"""How weights travel from rank 0 to all workers of one fleet membership: a file in shared memory, or broadcasts."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import torch
from torch.distributed import TCPStore

from siri_megatron.weights.fleet_client import Deadline, FleetClient
from siri_megatron.weights.gloo_group import GlooGroup, connect, host_store

Slot = tuple[str, str, list[int], int]  # name, dtype ("float32"), full shape, byte offset
ALIGNMENT = 64  # bytes; tensors are read in place and a view needs an aligned start
BUCKET_BYTES = 64 * 2**20


class Sender(Protocol):
    """A transport, on rank 0, bound to one fleet epoch."""

    def send(self, tensors: Iterator[tuple[str, torch.Tensor]], deadline: Deadline) -> int:
        """Start an update and hand over all tensors; returns their bytes."""


class ShmSender:
    """Writes all tensors into one file in shared memory, then names it to the engines."""

    def __init__(self, client: FleetClient, path: Path, deadline: Deadline) -> None:
        self.client, self.path = client, path
        client.init([{} for _ in client.fleet.engines], deadline)

    def send(self, tensors: Iterator[tuple[str, torch.Tensor]], deadline: Deadline) -> int:
        self.path.unlink(missing_ok=True)
        try:
            slots, size = write_tensors(self.path, tensors)
            self.client.start(deadline)
            self.client.update({"slots": slots, "size": size, "path": str(self.path)}, deadline)
        finally:
            # Engines that mapped it keep it alive until they have packed the weights; nothing is left in /dev/shm.
            self.path.unlink(missing_ok=True)
        return size


class GlooSender:
    """Broadcasts the tensors bucket by bucket to all workers of the fleet."""

    def __init__(self, client: FleetClient, host: str, deadline: Deadline) -> None:
        self.client = client
        store = host_store(host, deadline.left())
        world = client.fleet.world_size
        infos = [{"host": host, "port": store.port, "rank_offset": offset, "world_size": world,
                  "timeout_s": deadline.sooner()} for offset in client.fleet.rank_offsets()]
        connecting = Connecting(store, host, world, deadline.sooner())
        client.init(infos, deadline, connecting)
        self.group = connecting.group

    def send(self, tensors: Iterator[tuple[str, torch.Tensor]], deadline: Deadline) -> int:
        self.client.start(deadline)
        total = 0
        for slots, flat in buckets(tensors, BUCKET_BYTES):
            timeout_s = deadline.sooner()
            self.client.update({"slots": slots, "size": flat.numel(), "timeout_s": timeout_s}, deadline,
                               Broadcasting(self.group, flat, timeout_s))
            total += flat.numel()
        return total


@dataclass
class Connecting:
    """The sender joins its group while the engines do (a `Meanwhile`)."""

    store: TCPStore
    host: str
    world_size: int
    timeout_s: float
    group: GlooGroup = field(init=False)

    def run(self) -> None:
        self.group = connect(self.store, host=self.host, rank=0, world_size=self.world_size, timeout_s=self.timeout_s)

    def abort(self) -> None:
        """The store's wait cannot be cut short: it ends by its timeout."""


@dataclass
class Broadcasting:
    """One bucket on its way (a `Meanwhile`)."""

    group: GlooGroup
    flat: torch.Tensor
    timeout_s: float
    stop: threading.Event = field(default_factory=threading.Event)

    def run(self) -> None:
        self.group.broadcast(self.flat, self.timeout_s, self.stop)

    def abort(self) -> None:
        self.stop.set()


def write_tensors(path: Path, tensors: Iterator[tuple[str, torch.Tensor]]) -> tuple[list[Slot], int]:
    """Write tensors one after the other into a new file (mode 0600); returns their places and the size in bytes."""
    slots: list[Slot] = []
    offset = 0
    # Exclusive creation follows no link that somebody else put into this world-writable directory.
    with open(path, "xb", opener=lambda name, flags: os.open(name, flags, 0o600)) as file:
        for name, tensor in tensors:
            flat = as_bytes(tensor)
            padding = -flat.numel() % ALIGNMENT
            slots.append(_slot(name, tensor, offset))
            file.write(memoryview(flat.numpy()))
            file.write(bytes(padding))
            offset += flat.numel() + padding
    return slots, offset


def as_bytes(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor's bytes, flat, on the CPU."""
    return tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)


def buckets(tensors: Iterator[tuple[str, torch.Tensor]], limit: int) -> Iterator[tuple[list[Slot], torch.Tensor]]:
    """Pack tensors into byte buffers of at most `limit` bytes (a larger tensor travels alone), in order."""
    slots: list[Slot] = []
    parts: list[torch.Tensor] = []
    size = 0
    for name, tensor in tensors:
        flat = as_bytes(tensor)
        if slots and size + flat.numel() > limit:
            yield slots, torch.cat(parts)
            slots, parts, size = [], [], 0
        padding = -flat.numel() % ALIGNMENT
        slots.append(_slot(name, tensor, size))
        parts += [flat, torch.zeros(padding, dtype=torch.uint8)]
        size += flat.numel() + padding
    if slots:
        yield slots, torch.cat(parts)


def _slot(name: str, tensor: torch.Tensor, offset: int) -> Slot:
    return name, str(tensor.dtype).removeprefix("torch."), list(tensor.shape), offset

