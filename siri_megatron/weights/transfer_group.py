"""The group of one sender and all engine workers, apart from every other process group. Imports only torch.

Both sides build it from the same few numbers: the sender hosts the store on a port that the system chooses (no race),
is rank 0 and tells the address; the workers take ranks 1.. in fleet order. Broadcasts carry a deadline.

Two transports, alike but for how the group is made: gloo (CPU tensors, any hosts) and nccl (CUDA tensors). Why torch's
NCCL group and not vLLM's own communicator: that one sends a pickle through the store, has no time limit, and would put
vLLM into the learners' environment.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Literal

import torch
from torch.distributed import PrefixStore, ProcessGroupGloo, TCPStore

POLL_S = 0.001
Transport = Literal["gloo", "nccl"]


@dataclass(frozen=True)
class TransferGroup:
    """One membership; unusable after a failed broadcast: close it and build another."""

    store: TCPStore
    group: Any
    """torch's ProcessGroupGloo or ProcessGroupNCCL."""
    device: torch.device
    """Where the tensors lie that it carries."""

    def broadcast(self, tensor: torch.Tensor, timeout_s: float, stop: threading.Event | None = None) -> None:
        """Send (rank 0) or fill (others) a contiguous tensor on `device`; gives up early once `stop` is set.

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
                self.close()
                raise RuntimeError("given up: a member reported an error")
        work.wait(timedelta(seconds=timeout_s))

    def close(self) -> None:
        """Leave, without waiting for the others. A kernel of NCCL that waits for them would keep the GPU busy."""
        if self.device.type == "cuda":
            self.group.abort()


def host_store(host: str, timeout_s: float) -> TCPStore:
    """The sender's store, listening on a port chosen by the system (`store.port`)."""
    return TCPStore(host, 0, None, is_master=True, wait_for_workers=False, timeout=timedelta(seconds=timeout_s))


def join_store(host: str, port: int, timeout_s: float) -> TCPStore:
    """A worker's connection to the sender's store."""
    return TCPStore(host, port, None, is_master=False, timeout=timedelta(seconds=timeout_s))


def connect(store: TCPStore, transport: Transport, *, host: str, rank: int, world_size: int,
            timeout_s: float) -> TransferGroup:
    """Form the group: returns once all `world_size` members are connected to each other.

    Raises:
        RuntimeError: not all members came within `timeout_s`.
    """
    own = PrefixStore("siri-push", store)
    if transport == "gloo":
        return TransferGroup(store, _gloo(own, host, rank, world_size, timeout_s), torch.device("cpu"))
    device = torch.device("cuda", torch.cuda.current_device())
    _meet(own, rank, world_size, timeout_s)
    group = TransferGroup(store, _nccl(own, rank, world_size, timeout_s), device)
    group.broadcast(torch.zeros(1, dtype=torch.uint8, device=device), timeout_s)  # NCCL connects at the first one
    return group


def _gloo(store: PrefixStore, host: str, rank: int, world_size: int, timeout_s: float) -> ProcessGroupGloo:
    """On a loopback fleet the transport is bound to that address; else gloo chooses the interface of the host's name
    (GLOO_SOCKET_IFNAME overrides it, as everywhere in torch)."""
    options = ProcessGroupGloo._Options()
    local = host in ("127.0.0.1", "localhost", "::1")
    options._devices = [ProcessGroupGloo.create_device(hostname=host) if local
                        else ProcessGroupGloo.create_default_device()]
    options._timeout = timedelta(seconds=timeout_s)
    return ProcessGroupGloo(store, rank, world_size, options)


def _nccl(store: PrefixStore, rank: int, world_size: int, timeout_s: float) -> Any:
    """On this process's current GPU. A failure is raised where it is waited for; by default torch's watchdog thread
    would end the whole process (ProcessGroupNCCL.cpp: handleException)."""
    from torch.distributed import ProcessGroupNCCL  # builds without CUDA do not have it

    options = ProcessGroupNCCL.Options()
    options._timeout = timedelta(seconds=timeout_s)
    with _environment("TORCH_NCCL_ASYNC_ERROR_HANDLING", "0"):  # read by the constructor
        return ProcessGroupNCCL(store, rank, world_size, options)


def _meet(store: PrefixStore, rank: int, world_size: int, timeout_s: float) -> None:
    """Wait until every member is here: NCCL itself waits for a member that never comes without any time limit."""
    store.set(f"here-{rank}", b"")
    store.wait([f"here-{member}" for member in range(world_size)], timedelta(seconds=timeout_s))


@contextmanager
def _environment(name: str, value: str) -> Iterator[None]:
    before = os.environ.get(name)
    os.environ[name] = value
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before
