"""Speaks vLLM's four-phase weight-transfer protocol to every engine of the fleet at once. No torch, no vLLM.

vLLM ships a client for one server, without key and without version; this one holds the whole fleet, sends the run's
key on every request, gives all requests of a push one deadline, and names the engine in every error.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Protocol

import httpx

from siri_megatron.errors import EngineError
from siri_megatron.paths import RunDir
from siri_megatron.rollout.engine_api import ROUTE
from siri_megatron.rollout.fleet import Engine, read_fleet
from siri_megatron.rollout.vllm_surface import (
    FINISH_UPDATE,
    INIT_TRANSFER,
    ON_WORKERS,
    PAUSE,
    RESET_PREFIX_CACHE,
    RESUME,
    START_UPDATE,
    UPDATE_WEIGHTS,
    WEIGHT_INFO,
)


class PushFailed(EngineError):
    """A push came to nothing; names every engine that had a part in it. `silent`: those that cannot go on: they
    did not answer at all, or have several workers, which are out of step after an error."""

    def __init__(self, what: str, *, rule: str = "", fix: str = "", silent: Sequence[Engine] = ()) -> None:
        super().__init__(what, rule=rule, fix=fix)
        self.silent = tuple(silent)


@dataclass(frozen=True)
class FleetAddresses:
    """One membership of the fleet. Rank 0 of a transfer group is the sender; the engines' workers follow in order."""

    epoch: int
    engines: tuple[Engine, ...]

    @classmethod
    def read(cls, run_dir: RunDir) -> FleetAddresses:
        """Everybody who is up; suspects are left out: one that hangs would hold up all others."""
        fleet = read_fleet(run_dir)
        return cls(fleet.epoch, tuple(engine for engine in fleet.engines if not engine.suspect))

    def rank_offsets(self) -> list[int]:
        """First rank of each engine: cumulative over the engines' tensor-parallel sizes."""
        offsets, rank = [], 1
        for engine in self.engines:
            offsets.append(rank)
            rank += engine.tp
        return offsets

    @property
    def world_size(self) -> int:
        """The sender and all workers."""
        return 1 + sum(engine.tp for engine in self.engines)


class Deadline:
    """A point in time that all requests of one push share."""

    def __init__(self, seconds: float, what: str) -> None:
        self.seconds, self.what, self.end = seconds, what, time.monotonic() + seconds

    def left(self) -> float:
        """Seconds left; raises EngineError if there are none."""
        left = self.end - time.monotonic()
        if left <= 0:
            raise PushFailed(f"{self.what} took longer than {self.seconds} s", rule="a push ends by push.timeout_s",
                             fix="look into the engines' logs, or raise push.timeout_s")
        return left

    @property
    def over(self) -> bool:
        return time.monotonic() >= self.end

    def sooner(self) -> float:
        """Seconds for what engines wait for among each other: who is held up complains before its own request is late,
        so that only the one that hangs stays silent."""
        return 0.8 * self.left()


class MemberGone(RuntimeError):
    """A broadcast, or the joining of a group, failed: somebody has left, is late, or refused."""


class Meanwhile(Protocol):
    """What the sender does while the engines are at work: runs in the caller's thread."""

    def run(self) -> None:
        """Raises MemberGone if what it does together with the engines fails. Any other error is the caller's own."""

    def abort(self) -> None:
        """Make `run` fail now: an engine refused, so it would wait for nothing."""


class FleetClient:
    """One thread per engine; every method returns when all engines have answered, or raises EngineError.

    Args:
        keep_requests: requests may be in flight on the engines: they are frozen from `start` to `resume`. vLLM then
            drops their keys and values, computes them anew under the new weights, and goes on where it stopped.
    """

    def __init__(self, fleet: FleetAddresses, key: str, *, keep_requests: bool = False) -> None:
        self.fleet, self._keep_requests = fleet, keep_requests
        # No keep-alive: a connection left over from the last push may have died in the meantime.
        self._http = httpx.Client(trust_env=False, headers={"Authorization": f"Bearer {key}"},
                                  limits=httpx.Limits(max_keepalive_connections=0))
        self._threads = ThreadPoolExecutor(max(1, len(fleet.engines)), thread_name_prefix="push")

    def init(self, infos: Sequence[Mapping[str, Any]], deadline: Deadline,
             meanwhile: Meanwhile | None = None) -> None:
        """Phase 1, once per connection: what each engine needs to reach the sender. Before it, engines leave the update
        that an earlier attempt, or a sender that is gone, has begun and not finished."""
        self._post(ON_WORKERS, deadline, [{"method": "abandon_weight_update"}] * len(infos))
        bodies = [{"init_info": dict(info)} for info in infos]
        self._post(INIT_TRANSFER, deadline, bodies, meanwhile)

    def start(self, deadline: Deadline) -> None:
        """Phase 2: from here until `finish` the engines hold no usable weights."""
        if self._keep_requests:
            self._post(f"{PAUSE}?mode=keep&clear_cache=true", deadline)
        self._post(START_UPDATE, deadline)

    def resume(self, deadline: Deadline) -> None:
        """The push is complete: requests that were in flight go on. Always: a sender that is gone may have paused."""
        self._post(RESUME, deadline)

    def update(self, info: Mapping[str, Any], deadline: Deadline, meanwhile: Meanwhile | None = None) -> None:
        """Phase 3: a bucket of weights; `meanwhile` is the broadcast that the engines wait for."""
        self._post(UPDATE_WEIGHTS, deadline, [{"update_info": dict(info)}] * len(self.fleet.engines), meanwhile)

    def finish(self, version: str, deadline: Deadline) -> None:
        """Phase 4: the engines pack the weights and take the version label."""
        self._post(FINISH_UPDATE, deadline, [{"weight_version": version}] * len(self.fleet.engines))

    def reset_prefix_cache(self, deadline: Deadline) -> None:
        """Forget keys and values computed under older weights; vLLM refuses while requests hold some."""
        answers = self._all(lambda i: self._request("POST", i, RESET_PREFIX_CACHE, None, deadline))
        busy = [str(e.index) for e, a in zip(self.fleet.engines, answers, strict=True) if not a.json()["success"]]
        if busy:
            raise PushFailed(f"the prefix cache of engine {', '.join(busy)} was not reset",
                             rule="no request runs on an engine during a push",
                             fix="wait for collection and evaluation to end before a push")

    def versions(self, deadline: Deadline) -> list[str]:
        """The weight version of each engine."""
        answers = self._all(lambda i: self._request("GET", i, WEIGHT_INFO, None, deadline))
        return [str(answer.json()["weight_version"]) for answer in answers]

    def assert_version(self, version: str, deadline: Deadline) -> None:
        """Raise EngineError unless every engine serves `version`."""
        found = self.versions(deadline)
        stale = [f"engine {e.index} has {v!r}" for e, v in zip(self.fleet.engines, found, strict=True) if v != version]
        if stale:
            raise PushFailed(f"weight version {version!r} was pushed, yet {', '.join(stale)}",
                             rule="after a push every engine serves the same version",
                             fix="look into the logs of these engines")

    def generate(self, body: Mapping[str, Any], deadline: Deadline) -> list[Any]:
        """What each engine answers to the same request."""
        return [answer.json() for answer in self._all(lambda i: self._request("POST", i, ROUTE, body, deadline))]

    def close(self) -> None:
        """Close connections; requests under way are left to their own time limit."""
        self._threads.shutdown(wait=False, cancel_futures=True)
        self._http.close()

    def _post(self, path: str, deadline: Deadline, bodies: Sequence[Mapping[str, Any]] | None = None,
              meanwhile: Meanwhile | None = None) -> None:
        body = (lambda i: bodies[i]) if bodies is not None else (lambda _: None)
        self._all(lambda i: self._request("POST", i, path, body(i), deadline), meanwhile)

    def _all(self, call: Callable[[int], Any], meanwhile: Meanwhile | None = None) -> list[Any]:
        """Call every engine in parallel. An engine's own complaint comes before the failed broadcast that it caused."""
        futures = [self._threads.submit(call, i) for i in range(len(self.fleet.engines))]
        broken = _run_beside(futures, meanwhile) if meanwhile else ""
        complaints = [error for future in futures if isinstance(error := future.exception(), PushFailed)]
        if complaints:
            raise together(complaints)
        answers = [future.result() for future in futures]
        if broken:
            raise PushFailed(f"broadcast of weights failed: {broken}", rule="every engine takes part in a push",
                             fix="look into the engines' logs")
        return answers

    def _request(self, method: str, i: int, path: str, body: Mapping[str, Any] | None,
                 deadline: Deadline) -> httpx.Response:
        engine = self.fleet.engines[i]
        name = engine.name
        try:
            answer = self._http.request(method, engine.url + path, json=body, timeout=deadline.left())
        except httpx.TimeoutException:
            raise PushFailed(f"{name} did not answer {path} within the {deadline.seconds} s of {deadline.what}",
                             fix="look into its log, or raise push.timeout_s", silent=[engine]) from None
        except httpx.HTTPError as error:
            raise PushFailed(f"{name} cannot be reached for {path}: {error or type(error).__name__}",
                             fix="look into its log: it may have died", silent=[engine]) from None
        if answer.status_code != 200:
            # vLLM's executor raises the first worker's error and leaves the answers of the others in their queues,
            # where the next calls would take them for their own.
            raise PushFailed(f"{name} answered {path} with {answer.status_code}: {answer.text[:500]}",
                             fix="look into its log", silent=[engine] if engine.tp > 1 else [])
        return answer


def together(complaints: Sequence[PushFailed]) -> PushFailed:
    """One error for all; who was silent is likely the cause of the others' complaints and stands first."""
    ordered = sorted(complaints, key=lambda error: not error.silent)
    return PushFailed("; ".join(dict.fromkeys(error.what for error in ordered)), rule=ordered[0].rule,
                      fix=ordered[0].fix, silent=[engine for error in ordered for engine in error.silent])


def _run_beside(futures: Sequence[Future[httpx.Response]], meanwhile: Meanwhile) -> str:
    """What went wrong, as text: an exception would keep the transfer group alive through its frames."""
    for future in futures:
        future.add_done_callback(lambda done: meanwhile.abort() if done.exception() else None)
    try:
        meanwhile.run()
    except MemberGone as error:
        return str(error)
    return ""
