"""Brings every engine to the learner's weights.

    learner ranks            rank 0                                             engines
    export_tensors() ──►  shm:        one file under /dev/shm  ── path ──►  map, load, pack     (start, update, finish)
     (collective)         gloo, nccl: buckets ── broadcast ────────────►  receive, load, pack

Every rank iterates the export, which is a collective; only rank 0 writes, sends and speaks HTTP. vLLM's own trainer
classes are not used: importing them costs a learner 3 to 5 s at every start, they serve one engine, and send no
version. The four-phase protocol is spoken directly, so that a learner's environment needs no vLLM at all.

Invariants:

- all_or_error: `push` returns only if every engine of the fleet answers with the new version and an empty prefix cache;
  exactly these are then confirmed (pushed.json).
- collectives_complete: whatever fails on rank 0, it drains the export, so no other rank waits inside a gather.
- deadline: no request or broadcast of an attempt outlives push.timeout_s, counted from its start.
- one_group_per_epoch: a transfer group belongs to one membership of the fleet; it is rebuilt when that changes and
  after a failure.
- partial_is_stale: an attempt that failed anywhere withdraws the confirmation of all engines.
- repeated: engines that were silent are accused (the supervisor ends and restarts them) and, once they have left, the
  push is repeated with the rest, at most push.max_tries times in all.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Protocol

import torch

from siri_megatron.config import RunConfig
from siri_megatron.paths import RunDir
from siri_megatron.rollout.fleet import Engine, accuse, confirm, read_fleet, withdraw
from siri_megatron.weights.fleet_client import Deadline, FleetAddresses, FleetClient, PushFailed
from siri_megatron.weights.senders import GroupSender, Sender, ShmSender

POLL_S = 0.1
LEAVING_S = 15.0
"""What the supervisor may take to end an engine that was accused, and to say so."""
DYING_S = 3.0
"""How long a server whose core has died may answer errors before it ends."""

log = logging.getLogger(__name__)

Share = Callable[[str, Callable[[], Any]], Any]


class WeightSource(Protocol):
    """What a push needs of a learner (structural: vLLM's class of this name is not imported)."""

    is_rank0: bool

    def export_tensors(self) -> Iterator[tuple[str, torch.Tensor]]:
        """(Hugging Face name, full tensor) in one order on every rank. Collective."""


class WeightPush:
    """The push as the training loop sees it. Built on every rank; `push` is collective over the learners.

    Args:
        share: hands what rank 0 decides to every rank (`ControlPlane.share`).
    """

    def __init__(self, config: RunConfig, run_dir: RunDir, learner: WeightSource, share: Share) -> None:
        self.config, self.run_dir, self.learner, self._share = config, run_dir, learner, share
        self._client: FleetClient | None = None
        self._sender: Sender | None = None
        self._failed: PushFailed | None = None  # of the attempt under way

    def push(self, version: str) -> dict[str, float]:
        """Make every engine serve the learner's present weights as `version`.

        Returns:
            On rank 0 `push_s`, `push_bytes`, `push_engines` and `push_tries`; elsewhere nothing.

        Raises:
            EngineError: the last attempt failed as well, or no engine was up in time; names the engines.
        """
        start, sent, tries = time.monotonic(), 0, 0
        done = False
        while not done:
            tries += 1
            # Engines are waited for, and joined in a group, before any rank enters the export, which is a collective.
            deadline = Deadline(self.config.push.timeout_s, f"the push of version {version}")
            if self._share(f"push-{version}", lambda: self._join(deadline)):  # noqa: B023
                sent = self._export(version, deadline)
            done = self._share(f"pushed-{version}", lambda: self._conclude(version, tries))  # noqa: B023
        if self._client is None:
            return {}
        return {"push_s": time.monotonic() - start, "push_bytes": float(sent), "push_tries": float(tries),
                "push_engines": float(len(self._client.fleet.engines))}

    def generate(self, body: Mapping[str, Any], deadline: Deadline) -> dict[str, Any]:
        """On rank 0, after a push: what each engine that was pushed to answers to the same request, by its name."""
        assert self._client is not None, "a push comes first"
        names = [engine.name for engine in self._client.fleet.engines]
        return dict(zip(names, self._client.generate(body, deadline), strict=True))

    def close(self) -> None:
        """Release connections and the transfer group."""
        if self._sender:
            self._sender.close()
        if self._client:
            self._client.close()
        self._sender = self._client = None

    def _join(self, deadline: Deadline) -> bool:
        """On rank 0: one transfer group with every engine that is up now; False if that failed."""
        self._failed = None
        try:
            fleet = await_fleet(self.run_dir, deadline)
            if self._sender is None or self._client is None or self._client.fleet != fleet:
                self.close()
                self._client = FleetClient(fleet, self.run_dir.key.read_text().strip(),
                                           keep_requests=self.config.rollout.lag > 0)
                self._sender = self._build_sender(self._client, deadline)
        except PushFailed as error:
            self._failed = error
        return self._failed is None

    def _export(self, version: str, deadline: Deadline) -> int:
        """Every rank exports, rank 0 sends; returns the bytes."""
        tensors = self.learner.export_tensors()
        try:
            return self._send(tensors, version, deadline) if self.learner.is_rank0 else 0
        finally:
            exhaust(tensors)

    def _send(self, tensors: Iterator[tuple[str, torch.Tensor]], version: str, deadline: Deadline) -> int:
        assert self._client is not None
        assert self._sender is not None
        try:
            sent = self._sender.send(tensors, deadline)
            self._client.finish(version, deadline)
            self._client.reset_prefix_cache(deadline)
            self._client.assert_version(version, deadline)
            self._client.resume(deadline)
        except PushFailed as error:
            self._failed = error
            return 0
        return sent

    def _conclude(self, version: str, tries: int) -> bool:
        """On rank 0, after an attempt: True if it is over, False if it is to be repeated.

        Raises:
            PushFailed: it was the last one.
        """
        if self._failed is None:
            assert self._client is not None
            confirm(self.run_dir, version, (engine.key for engine in self._client.fleet.engines))
            return True
        withdraw(self.run_dir)
        for engine in self._failed.silent:
            accuse(self.run_dir, engine.key, self._failed.what)
        epoch = self._client.fleet.epoch if self._client else 0
        self.close()
        if tries == self.config.push.max_tries:
            raise self._failed
        log.warning("attempt %d at %s failed and is repeated: %s", tries, version, self._failed.what)
        await_change(self.run_dir, epoch, self._failed.silent)
        return False

    def _build_sender(self, client: FleetClient, deadline: Deadline) -> Sender:
        backend = self.config.push.backend
        if backend == "shm":
            return ShmSender(client, self.run_dir.shared_weights, deadline)
        return GroupSender(client, backend, self.config.engines.host, deadline)


def await_fleet(run_dir: RunDir, deadline: Deadline) -> FleetAddresses:
    """Who is up, waiting until somebody is.

    Raises:
        PushFailed: nobody was until the deadline.
    """
    while not (fleet := FleetAddresses.read(run_dir)).engines:
        if deadline.over:
            raise PushFailed(f"no engine is up, and none came within the {deadline.seconds:g} s of {deadline.what}",
                             rule="a push needs an engine", fix="read the engines' logs")
        time.sleep(POLL_S)
    return fleet


def await_change(run_dir: RunDir, epoch: int, silent: Sequence[Engine]) -> None:
    """Give the supervisor time to see that engines are dead: who was silent is; who answered an error may be dying."""
    end, gone = time.monotonic() + (LEAVING_S if silent else DYING_S), {engine.key for engine in silent}
    while time.monotonic() < end:
        fleet = read_fleet(run_dir)
        if not gone & {engine.key for engine in fleet.engines} and (gone or fleet.epoch != epoch):
            return
        time.sleep(POLL_S)


def exhaust(tensors: Iterator[tuple[str, torch.Tensor]]) -> None:
    """Run through the rest of an export: the collectives behind it must complete on every rank.

    Keeps no tensor while the next one is made, as a loop variable would: it may be a view of a whole bucket.
    """
    deque(tensors, maxlen=0)
