"""Brings every engine to the learner's weights.

    learner ranks            rank 0                                        engines
    export_tensors() ──►  shm:  one file under /dev/shm  ── path ──►  map, load, pack      (start, update, finish)
     (collective)         gloo: buckets ── broadcast ─────────────►  receive, load, pack

Every rank iterates the export, which is a collective; only rank 0 writes, sends and speaks HTTP. vLLM's own trainer
classes are not used: importing them costs a learner 3 to 5 s at every start, they serve one engine, and send no
version. The four-phase protocol is spoken directly, so that a learner's environment needs no vLLM at all.

Invariants:

- all_or_error: `push` returns only if every engine answers with the new version and an empty prefix cache.
- collectives_complete: whatever fails on rank 0, it drains the export, so no other rank waits inside a gather.
- deadline: no request or broadcast outlives push.timeout_s, counted from the start of the push.
- one_group_per_epoch: a transfer group belongs to one membership of the fleet; it is rebuilt when that changes and
  after a failure.
- repeatable: after a failed push another one may be tried; the engines serve nothing in between.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import torch
from torch.distributed import TCPStore

from siri_megatron.config import RunConfig
from siri_megatron.errors import ConfigError, EngineError
from siri_megatron.paths import RunDir
from siri_megatron.weights.fleet_client import Deadline, FleetAddresses, FleetClient
from siri_megatron.weights.gloo_group import GlooGroup, connect, host_store

Slot = tuple[str, str, list[int], int]  # name, dtype ("float32"), full shape, byte offset
ALIGNMENT = 64  # bytes; tensors are read in place and a view needs an aligned start
BUCKET_BYTES = 64 * 2**20
GIVE_UP_S = 5.0


class WeightSource(Protocol):
    """What a push needs of a learner (structural: vLLM's class of this name is not imported)."""

    is_rank0: bool

    def export_tensors(self) -> Iterator[tuple[str, torch.Tensor]]:
        """(Hugging Face name, full tensor) in one order on every rank. Collective."""


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
        self.client, timeout_s = client, deadline.seconds
        store = host_store(host, timeout_s)
        world = client.fleet.world_size
        infos = [{"host": host, "port": store.port, "rank_offset": offset, "world_size": world, "timeout_s": timeout_s}
                 for offset in client.fleet.rank_offsets()]
        connecting = Connecting(store, host, world, deadline.left())
        client.init(infos, deadline, connecting)
        self.group = connecting.group

    def send(self, tensors: Iterator[tuple[str, torch.Tensor]], deadline: Deadline) -> int:
        self.client.start(deadline)
        total = 0
        for slots, flat in buckets(tensors, BUCKET_BYTES):
            self.client.update({"slots": slots, "size": flat.numel()}, deadline,
                               Broadcasting(self.group, flat, deadline.left()))
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


class WeightPush:
    """The push as the training loop sees it. Built on every rank; `push` is collective over the learners."""

    def __init__(self, config: RunConfig, run_dir: RunDir, learner: WeightSource) -> None:
        self.config, self.run_dir, self.learner = config, run_dir, learner
        self._client: FleetClient | None = None
        self._sender: Sender | None = None

    def push(self, version: str) -> dict[str, float]:
        """Make every engine serve the learner's present weights as `version`.

        Returns:
            On rank 0 `push_s`, `push_bytes` and `push_engines`; elsewhere nothing.

        Raises:
            EngineError: an engine failed, or time ran out; names the engine.
        """
        tensors = self.learner.export_tensors()
        try:
            return self._send(tensors, version) if self.learner.is_rank0 else {}
        finally:
            exhaust(tensors)

    def close(self) -> None:
        """Release connections and the transfer group."""
        if self._client:
            self._client.close()
        self._sender = self._client = None

    def _send(self, tensors: Iterator[tuple[str, torch.Tensor]], version: str) -> dict[str, float]:
        start = time.monotonic()
        deadline = Deadline(self.config.push.timeout_s, f"the push of version {version}")
        client, sender = self._connected(deadline)
        try:
            sent = sender.send(tensors, deadline)
            client.finish(version, deadline)
            client.reset_prefix_cache(deadline)
            client.assert_version(version, deadline)
        except EngineError:
            client.give_up(GIVE_UP_S)
            self.close()
            raise
        return {"push_s": time.monotonic() - start, "push_bytes": float(sent),
                "push_engines": float(len(client.fleet.engines))}

    def _connected(self, deadline: Deadline) -> tuple[FleetClient, Sender]:
        fleet = FleetAddresses.read(self.run_dir)
        if self._client and self._sender and self._client.fleet == fleet:
            return self._client, self._sender
        self.close()
        self._client = FleetClient(fleet, self.run_dir.key.read_text().strip())
        self._sender = self._build_sender(self._client, deadline)
        return self._client, self._sender

    def _build_sender(self, client: FleetClient, deadline: Deadline) -> Sender:
        match self.config.push.backend:
            case "shm":
                return ShmSender(client, self.run_dir.shared_weights, deadline)
            case "gloo":
                return GlooSender(client, self.config.engines.host, deadline)
            case other:
                raise ConfigError(f"push.backend={other} has no sender yet", rule="transports: shm (one host), gloo",
                                  fix="set push.backend=shm or push.backend=gloo")


def exhaust(tensors: Iterator[tuple[str, torch.Tensor]]) -> None:
    """Run through the rest of an export: the collectives behind it must complete on every rank."""
    for _ in tensors:
        pass


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

