"""How weights travel from rank 0 to all workers of one fleet membership: files in shared memory, or broadcasts.

What is broadcast is the same over gloo and over nccl: buckets of bytes, each announced (names, dtypes, shapes, places)
before it is sent. Only the device they lie on and the group's constructor differ (`transfer_group.connect`).

Invariants:
- bucket_by_bucket: at most two buckets exist at a time (one that the engines load, one that is being filled).
- overlapped: the next bucket is exported and filled while the engines load the one before.
- own_errors_are_ours: what the export raises is raised as it is, and never taken for an engine's failure.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Protocol

import torch
from torch.distributed import TCPStore

from siri_megatron.weights.feed import ALIGNMENT, Feed, Slot
from siri_megatron.weights.fleet_client import Deadline, FleetClient, MemberGone
from siri_megatron.weights.transfer_group import TransferGroup, Transport, connect, host_store

BUCKET_BYTES = 64 * 2**20


class Sender(Protocol):
    """A transport, on rank 0, bound to one fleet epoch."""

    def send(self, tensors: Iterator[tuple[str, torch.Tensor]], deadline: Deadline) -> int:
        """Start an update and hand over all tensors; returns their bytes."""

    def close(self) -> None:
        """Release what it holds, without waiting for anybody."""


class ShmSender:
    """Writes each bucket into a file in shared memory, then names it to the engines.

    A file lives as long as its request: engines that mapped it keep what they still need of it alive until they have
    packed the weights, and nothing is left in /dev/shm.
    """

    def __init__(self, client: FleetClient, files: Sequence[Path], deadline: Deadline) -> None:
        self.client, self.files = client, files
        client.init([{} for _ in client.fleet.engines], deadline)

    def send(self, tensors: Iterator[tuple[str, torch.Tensor]], deadline: Deadline) -> int:
        feed, (file, other), total = Feed(tensors), self.files, 0
        try:
            slots, size = write_bucket(file, feed)
            self.client.start(deadline)  # not before: from here on engines may hold up requests
            while slots:
                ahead = Ahead(partial(write_bucket, other, feed))
                self.client.update({"slots": slots, "size": size, "path": str(file)}, deadline, ahead)
                file, other = other, file
                total += size
                slots, size = ahead.filled
        finally:
            for written in self.files:
                written.unlink(missing_ok=True)
        return total

    def close(self) -> None: ...


class GroupSender:
    """Broadcasts the tensors bucket by bucket to all workers of the fleet."""

    def __init__(self, client: FleetClient, transport: Transport, host: str, deadline: Deadline) -> None:
        self.client = client
        store = host_store(host, deadline.left())
        world = client.fleet.world_size
        infos = [{"transport": transport, "host": host, "port": store.port, "rank_offset": offset, "world_size": world,
                  "timeout_s": deadline.sooner()} for offset in client.fleet.rank_offsets()]
        connecting = Connecting(store, transport, host, world, deadline.sooner())
        client.init(infos, deadline, connecting)
        self.group = connecting.group

    def send(self, tensors: Iterator[tuple[str, torch.Tensor]], deadline: Deadline) -> int:
        feed, buffer, total = Feed(tensors), Buffer(self.group.device), 0
        slots, size = buffer.fill(feed)
        self.client.start(deadline)
        while slots:
            timeout_s = deadline.sooner()
            ahead = Ahead(partial(buffer.fill, feed), Broadcasting(self.group, buffer.flat[:size], timeout_s))
            self.client.update({"slots": slots, "size": size, "timeout_s": timeout_s}, deadline, ahead)
            total += size
            slots, size = ahead.filled
        return total

    def close(self) -> None:
        """Leave the group."""
        self.group.close()


@dataclass
class Connecting:
    """The sender joins its group while the engines do (a `Meanwhile`)."""

    store: TCPStore
    transport: Transport
    host: str
    world_size: int
    timeout_s: float
    group: TransferGroup = field(init=False)

    def run(self) -> None:
        try:
            self.group = connect(self.store, self.transport, host=self.host, rank=0, world_size=self.world_size,
                                 timeout_s=self.timeout_s)
        except RuntimeError as error:
            raise MemberGone(str(error) or type(error).__name__) from None

    def abort(self) -> None:
        """The store's wait cannot be cut short: it ends by its timeout."""


@dataclass
class Broadcasting:
    """One bucket on its way."""

    group: TransferGroup
    flat: torch.Tensor
    timeout_s: float
    stop: threading.Event = field(default_factory=threading.Event)

    def run(self) -> None:
        """Raises MemberGone."""
        try:
            self.group.broadcast(self.flat, self.timeout_s, self.stop)
        except RuntimeError as error:
            raise MemberGone(str(error) or type(error).__name__) from None


@dataclass
class Ahead:
    """A bucket is sent (unless it lies in a file), then the next one is filled while the engines load it (a
    `Meanwhile`)."""

    fill: Callable[[], tuple[list[Slot], int]]
    sending: Broadcasting | None = None
    filled: tuple[list[Slot], int] = field(init=False)

    def run(self) -> None:
        if self.sending:
            self.sending.run()
        self.filled = self.fill()

    def abort(self) -> None:
        if self.sending:
            self.sending.stop.set()


class Buffer:
    """The bytes of one bucket, used again for the next: a broadcast that is complete needs them no more."""

    def __init__(self, device: torch.device) -> None:
        self.flat = torch.empty(0, dtype=torch.uint8, device=device)

    def fill(self, feed: Feed) -> tuple[list[Slot], int]:
        if (need := max(BUCKET_BYTES, feed.next_bytes)) > self.flat.numel():
            self.flat = self.flat.new_empty(0)  # not two at a time
            self.flat = self.flat.new_empty(need + ALIGNMENT)
        return feed.fill(BUCKET_BYTES, lambda offset, data: self.flat[offset:offset + data.numel()].copy_(data))


def write_bucket(path: Path, feed: Feed) -> tuple[list[Slot], int]:
    """Write the next bucket into a new file (mode 0600); returns the tensors' places and its size in bytes."""
    path.unlink(missing_ok=True)
    # Exclusive creation follows no link that somebody else put into this world-writable directory.
    with open(path, "xb", opener=lambda name, flags: os.open(name, flags, 0o600)) as file:
        def write(offset: int, data: torch.Tensor) -> None:
            file.seek(offset)
            file.write(memoryview(data.cpu().numpy()))

        slots, size = feed.fill(BUCKET_BYTES, write)
        file.truncate(size)
    return slots, size
