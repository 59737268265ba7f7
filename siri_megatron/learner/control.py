"""How rank 0 tells the other ranks what it decided: JSON over a TCP store, with a heartbeat. Never a collective.

    rank 0                               rank r
    host(): store on a free port    ─►   join(): reads the address from rendezvous.json, checks its token
    publish("plan-7", {...})        ─►   receive("plan-7"): waits, and watches the heartbeat meanwhile
    reports("save-7")               ◄─   report("save-7", {...})
    heartbeat thread                ─►   silent too long: RunFailed, instead of waiting for ever

So a rank may wait minutes for the engines without being inside a model collective, whose watchdog would end the run.

Invariants:
- waits_are_bounded: every wait ends with a value, a timeout or a dead heartbeat, and says what it waited for.
- in_order: messages are numbered, and every rank reads all of them in the order in which they were published; so a
  name may be used again, however slow a rank is.
- read_by_all_then_gone: the last reader of a message deletes it, so memory stays flat.
- loopback_only: the store listens on the given address alone, not on all interfaces as TCPStore would by itself.
- no_stale_address: a rendezvous.json of an earlier attempt is not believed; its token must be the store's.
"""

from __future__ import annotations

import json
import os
import secrets
import socket
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch.distributed as dist

from siri_megatron.config import LearnerConfig
from siri_megatron.errors import RunFailed
from siri_megatron.paths import RunDir

FIRST_POLL_S, LAST_POLL_S = 0.001, 0.02
"""Pauses between two looks for a message: short after the start of a wait, then longer."""
LOOK_S = 0.5
"""Seconds between two looks at the heartbeat."""
LEAVE_S = 3.0
"""How long rank 0 keeps the store open at its end for ranks that have not left yet."""
_TOKEN, _HEARTBEAT, _LEFT = "token", "heartbeat", "left"


class ControlPlane:
    """One rank's end of the control plane. Make it with `open`; `close` it, or use it as a context manager."""

    def __init__(self, rank: int, world: int, address: tuple[str, int], server: dist.TCPStore | None,
                 layout: LearnerConfig) -> None:
        self.rank, self.world = rank, world
        self._address, self._server, self._layout = address, server, layout
        self._store = _client(address)
        self._stores_made = self._messages = 0
        self._stopped = threading.Event()
        self._beat, self._beat_seen = b"", time.monotonic()
        if rank == 0:
            threading.Thread(target=self._keep_beating, args=(_client(address),), daemon=True).start()

    @classmethod
    def open(cls, run_dir: RunDir, rank: int, world: int, layout: LearnerConfig, *,
             host: str = "127.0.0.1") -> ControlPlane:
        """Host the store (rank 0, on a free port of `host`) or join it (the others).

        Raises:
            RunFailed: rank 0 did not publish its address within layout.control_timeout_s.
        """
        if rank == 0:
            server, address = _host(run_dir.rendezvous, host)
            return cls(rank, world, address, server, layout)
        return cls(rank, world, _find(run_dir.rendezvous, layout.control_timeout_s), None, layout)

    def publish(self, name: str, value: Any) -> None:
        """Give a JSON value to every other rank under a name. Does not wait."""
        if self.world > 1:
            self._store.set(f"message/{self._messages}/{name}", json.dumps(value))
            self._messages += 1

    def receive(self, name: str, *, timeout_s: float | None = None) -> Any:
        """Wait for another rank's `publish(name, ...)`.

        Raises:
            RunFailed: rank 0's heartbeat stopped, or nothing came within timeout_s (default: control_timeout_s).
        """
        waiting_for, key = f"rank {self.rank} waits for {name!r} from rank 0", f"{self._messages}/{name}"
        try:
            self._wait(f"message/{key}", timeout_s or self._layout.control_timeout_s, waiting_for)
            value = self._take(key)
        except dist.DistNetworkError as error:
            raise RunFailed(f"{waiting_for}, but the connection broke: {error}", rule="rank 0 outlives the others",
                            fix="see logs/learner-0.log for why rank 0 ended") from None
        self._messages += 1
        return value

    def share(self, name: str, decide: Callable[[], Any], *, timeout_s: float | None = None) -> Any:
        """Rank 0 decides and publishes, the others receive (JSON).

        Raises:
            RunFailed: as `receive`.
        """
        if self.rank:
            return self.receive(name, timeout_s=timeout_s)
        decision = decide()
        self.publish(name, decision)
        return decision

    def report(self, name: str, value: Any) -> None:
        """Tell rank 0 a JSON value of this rank's own. Does not wait."""
        self._store.set(f"report/{name}/{self.rank}", json.dumps(value))
        self._store.add(f"reported/{name}", 1)

    def all_reported(self, name: str) -> bool:
        """On rank 0: has every rank called `report(name, ...)`? Does not wait."""
        return self._store.add(f"reported/{name}", 0) == self.world

    def reports(self, name: str, *, timeout_s: float, what: str) -> list[Any]:
        """On rank 0: wait for every rank's report; by rank. The name may be used again then.

        Raises:
            RunFailed: some ranks did not report within timeout_s; it says which, and that they were to report `what`.
        """
        keys, deadline = [f"report/{name}/{rank}" for rank in range(self.world)], time.monotonic() + timeout_s
        while not self.all_reported(name):
            if time.monotonic() > deadline:
                missing = [rank for rank, key in enumerate(keys) if not self._store.check([key])]
                raise RunFailed(f"{what}: ranks {missing} did not report within {timeout_s:g} s",
                                rule="every rank reports", fix=f"see logs/learner-{missing[0]}.log")
            time.sleep(LAST_POLL_S)
        values = [json.loads(self._store.get(key)) for key in keys]
        for key in (*keys, f"reported/{name}"):
            self._store.delete_key(key)
        return values

    def store(self) -> dist.Store:
        """A store for a process group, on its own connection: names never clash with messages or earlier groups.

        Its time limit is that of collectives: NCCL groups, made at their first use, wait in it for who is late.
        """
        self._stores_made += 1
        return dist.PrefixStore(f"groups/{self._stores_made}",
                                _client(self._address, self._layout.collective_timeout_s))

    def close(self) -> None:
        """Leave. Rank 0 first lets the others read what it published (at most LEAVE_S)."""
        with suppress(dist.DistError):  # the peer may be gone already; leaving must not hide the first error
            self._store.add(_LEFT, 1)
            deadline = time.monotonic() + LEAVE_S
            while self.rank == 0 and self._store.add(_LEFT, 0) < self.world and time.monotonic() < deadline:
                time.sleep(0.02)
        self._stopped.set()
        self._server = None

    def __enter__(self) -> ControlPlane:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self.close()
        self._stopped.set()

    def _wait(self, key: str, timeout_s: float, waiting_for: str) -> None:
        """Poll, quickly at first: the store's own blocking wait writes two lines into the log for every slice."""
        start = looked = self._beat_seen = time.monotonic()
        pause = FIRST_POLL_S
        while not self._store.check([key]):
            now = time.monotonic()
            if now - start > timeout_s:
                raise RunFailed(f"{waiting_for}: nothing within {timeout_s:g} s", rule="learner.control_timeout_s",
                                fix="see logs/learner-0.log for what rank 0 is doing; raise the timeout if it is slow")
            if now - looked > LOOK_S:
                looked = now
                self._check_heartbeat(waiting_for)
            time.sleep(pause)
            pause = min(pause * 1.3, LAST_POLL_S)

    def _check_heartbeat(self, waiting_for: str) -> None:
        beat = self._store.get(_HEARTBEAT) if self._store.check([_HEARTBEAT]) else b""
        now = time.monotonic()
        if beat != self._beat:
            self._beat, self._beat_seen = beat, now
        silent = now - self._beat_seen
        if silent > self._layout.heartbeat_timeout_s:
            raise RunFailed(f"{waiting_for}, whose heartbeat has been silent for {silent:.1f} s",
                            rule=f"learner.heartbeat_timeout_s={self._layout.heartbeat_timeout_s:g}",
                            fix="see logs/learner-0.log; raise the timeout if rank 0 was only starved")

    def _take(self, key: str) -> Any:
        value = json.loads(self._store.get(f"message/{key}"))
        if self._store.add(f"readers/{key}", 1) == self.world - 1:
            self._store.delete_key(f"message/{key}")
            self._store.delete_key(f"readers/{key}")
        return value

    def _keep_beating(self, store: dist.TCPStore) -> None:
        """Rank 0's thread. On its own connection: a store serialises the operations of its users."""
        interval, count = min(1.0, self._layout.heartbeat_timeout_s / 4), 0
        with suppress(dist.DistError):  # the store went away with the process's end
            while not self._stopped.wait(interval):
                count += 1
                store.set(_HEARTBEAT, str(count))


def _host(rendezvous: Path, host: str) -> tuple[dist.TCPStore, tuple[str, int]]:
    """Start the store on a free port of one interface and publish where it is, atomically."""
    listener = socket.create_server((host, 0))
    port = listener.getsockname()[1]
    server = dist.TCPStore(host, port, is_master=True, wait_for_workers=False, master_listen_fd=listener.detach())
    token = secrets.token_hex(8)
    server.set(_TOKEN, token)
    draft = rendezvous.with_suffix(f".{os.getpid()}.tmp")
    draft.write_text(json.dumps({"host": host, "port": port, "token": token}))
    draft.replace(rendezvous)
    return server, (host, port)


def _find(rendezvous: Path, timeout_s: float) -> tuple[str, int]:
    """Wait until rendezvous.json names a store that answers with the file's token."""
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        address = _try_address(rendezvous)
        if address:
            return address
        time.sleep(0.05)
    raise RunFailed(f"no live control store in {rendezvous} within {timeout_s:g} s",
                    rule="rank 0 publishes its address", fix="see logs/learner-0.log for why rank 0 did not start")


def _try_address(rendezvous: Path) -> tuple[str, int] | None:
    if not rendezvous.is_file():
        return None
    found = json.loads(rendezvous.read_text())
    address = (found["host"], found["port"])
    with suppress(OSError, dist.DistError):  # an old file: nobody listens there, or not the store it speaks of
        socket.create_connection(address, timeout=2.0).close()  # TCPStore itself is slow and loud about a closed port
        store = _client(address, timeout_s=2.0)
        if store.check([_TOKEN]) and store.get(_TOKEN).decode() == found["token"]:
            return address
    return None


def _client(address: tuple[str, int], timeout_s: float = 30.0) -> dist.TCPStore:
    return dist.TCPStore(*address, is_master=False, wait_for_workers=False, timeout=timedelta(seconds=timeout_s))
