"""A gloo group of one sender and all engine workers, apart from every other process group. Imports only torch.

Both sides build it from the same few numbers: the sender hosts the store on a port that the system chooses (no race),
is rank 0 and tells the address; the workers take ranks 1.. in fleet order. Broadcasts carry a deadline.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass
from datetime import timedelta

import torch
from torch.distributed import PrefixStore, ProcessGroupGloo, TCPStore

POLL_S = 0.001


@dataclass(frozen=True)
class GlooGroup:
    """One membership; unusable after a failed broadcast: close it and build another."""

    store: TCPStore
    group: ProcessGroupGloo

    def broadcast(self, tensor: torch.Tensor, timeout_s: float, stop: threading.Event | None = None) -> None:
        """Send (rank 0) or fill (others) a contiguous CPU tensor; gives up early once `stop` is set.

        Raises:
            RuntimeError: a member is gone, the time is up, or `stop` was set.
        """
        options = torch.distributed.BroadcastOptions()
        options.rootRank, options.rootTensor = 0, 0
        options.timeout = timedelta(seconds=timeout_s)
        work = self.group.broadcast([tensor], options)
        # Polled, because neither abort() nor anything else of ProcessGroupGloo wakes a thread inside wait().
        while stop and not work.is_completed():
            if stop.wait(POLL_S):
                raise RuntimeError("given up: a member reported an error")
        work.wait(timedelta(seconds=timeout_s))


def host_store(host: str, timeout_s: float) -> TCPStore:
    """The sender's store, listening on a port chosen by the system (`store.port`)."""
    return TCPStore(host, 0, None, is_master=True, wait_for_workers=False, timeout=timedelta(seconds=timeout_s))


def join_store(host: str, port: int, timeout_s: float) -> TCPStore:
    """A worker's connection to the sender's store."""
    return TCPStore(host, port, None, is_master=False, timeout=timedelta(seconds=timeout_s))


def connect(store: TCPStore, *, host: str, rank: int, world_size: int, timeout_s: float) -> GlooGroup:
    """Form the group: returns once all `world_size` members are connected to each other.

    On a loopback fleet the transport is bound to that address; else gloo chooses the interface of the host's name
    (GLOO_SOCKET_IFNAME overrides it, as everywhere in torch).

    Raises:
        RuntimeError: not all members came within `timeout_s`.
    """
    options = ProcessGroupGloo._Options()
    local = host in ("127.0.0.1", "localhost", "::1")
    options._devices = [ProcessGroupGloo.create_device(hostname=host) if local
                        else ProcessGroupGloo.create_default_device()]
    options._timeout = timedelta(seconds=timeout_s)
    group = ProcessGroupGloo(PrefixStore("siri-push", store), rank, world_size, options)
    return GlooGroup(store, group)
