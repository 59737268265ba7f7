"""Client of the collector, for learner rank 0 and the driver. Synchronous."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

import httpx

from siri_megatron import errors
from siri_megatron.budget.step_budget import StepBudget
from siri_megatron.errors import EngineError, RunFailed, SiriError
from siri_megatron.files import read_json
from siri_megatron.paths import RunDir

POLL_S = 2.0
"""Length of one long poll: it returns at once when the work is done, so this only paces `on_progress`."""
ANSWER_S = 30.0
"""What the collector may take to answer beyond the poll; it is busy parsing while tokens arrive."""
START_S = 60.0
"""What the collector may take to publish its address."""
GRACE_S = 10.0
"""The collector has the same deadline and knows more: its error is waited for."""

OnProgress = Callable[[dict[str, int]], None]


class CollectorClient:
    """Asks for steps and evaluations, and waits for them.

    Args:
        run_dir: says where the collector is (collector.json, read at the first use) and what its key is.
    """

    def __init__(self, run_dir: RunDir) -> None:
        self._paths = run_dir
        self._http: httpx.Client | None = None

    def collect(self, budget: StepBudget, weight_version: str, *, timeout_s: float,
                on_progress: OnProgress | None = None, caps: Mapping[str, int] | None = None) -> dict[str, Any]:
        """Have a step collected; returns its statistics once it is closed in the ledger.

        Args:
            timeout_s: how long the collection may take.
            on_progress: called every few seconds with groups, groups_done and tokens. May raise to give up waiting.
            caps: prompt -> cap, of the prompts whose cap is below the step's.

        Raises:
            SiriError: what the collector reports (EngineError, DataError), or that it does not answer.
        """
        body = collect_order(budget, weight_version, caps or {})
        return self._do("/collect", str(budget.step), body, timeout_s, on_progress)

    def order(self, budget: StepBudget, weight_version: str, caps: Mapping[str, int]) -> None:
        """Have a step collected in the background: `collect` of the same order then waits for it. Raises as `collect`.

        An order that is worked on, or done, stays; one that failed is begun again.
        """
        self._request("POST", "/collect", json=collect_order(budget, weight_version, caps))

    def evaluate(self, tag: str, weight_version: str, *, timeout_s: float,
                 on_progress: OnProgress | None = None) -> dict[str, Any]:
        """Have the held-out problems evaluated; returns what stands in evaluations/<tag>.json. Raises as `collect`."""
        return self._do("/evaluate", tag, {"tag": tag, "weight_version": weight_version}, timeout_s, on_progress)

    def close(self) -> None:
        if self._http is not None:
            self._http.close()

    def _do(self, route: str, name: str, body: Mapping[str, Any], timeout_s: float,
            on_progress: OnProgress | None) -> dict[str, Any]:
        deadline = time.monotonic() + timeout_s + GRACE_S
        job = self._request("POST", route, json=body)
        while job["state"] == "running":
            if time.monotonic() > deadline:
                raise EngineError(f"{route[1:]} {name} runs for more than {timeout_s:g} s: {job['progress']}",
                                  rule="it ends within rollout.timeout_s or evaluation.timeout_s",
                                  fix="read the collector's log")
            job = self._request("GET", f"{route}/{name}", params={"wait": POLL_S})
            if on_progress:
                on_progress(job["progress"])
        if job["state"] == "failed":
            raise as_error(job["error"])
        return dict(job["stats"])

    def _request(self, method: str, path: str, **arguments: Any) -> dict[str, Any]:
        """One request, repeated once when its connection breaks: all routes are idempotent."""
        try:
            answer = self._client().request(method, path, **arguments)
        except httpx.TransportError:
            answer = self._repeat(method, path, **arguments)
        record = answer.json() if answer.headers.get("content-type", "").startswith("application/json") else {}
        if answer.is_success:
            return dict(record)
        raise as_error(record.get("error", {"what": f"the collector answered {answer.status_code} to {path}"}))

    def _repeat(self, method: str, path: str, **arguments: Any) -> httpx.Response:
        try:
            return self._client().request(method, path, **arguments)
        except httpx.TransportError as error:
            raise EngineError(f"the collector does not answer {method} {path}: {type(error).__name__}: {error}",
                              rule="it serves as long as the run lives",
                              fix=f"read {self._paths.logs / 'collector.log'}") from None

    def _client(self) -> httpx.Client:
        if self._http is None:
            headers = {"Authorization": f"Bearer {self._paths.key.read_text().strip()}"}
            self._http = httpx.Client(base_url=self._address(), headers=headers, trust_env=False,
                                      timeout=httpx.Timeout(POLL_S + ANSWER_S, connect=ANSWER_S))
        return self._http

    def _address(self) -> str:
        deadline = time.monotonic() + START_S
        while (published := read_json(self._paths.collector)) is None:
            if time.monotonic() > deadline:
                raise EngineError(f"no collector: {self._paths.collector} is not there after {START_S:g} s",
                                  rule="the collector publishes its address when it serves",
                                  fix=f"read {self._paths.logs / 'collector.log'}")
            time.sleep(0.05)
        return str(published["url"])


def collect_order(budget: StepBudget, weight_version: str, caps: Mapping[str, int]) -> dict[str, Any]:
    return {"budget": budget.to_json(), "weight_version": weight_version, "caps": dict(caps)}


def as_error(told: Mapping[str, Any]) -> SiriError:
    """The collector's error as an exception of the same class (RunFailed for one that is not ours)."""
    kind = getattr(errors, str(told.get("kind")), RunFailed)
    return kind(str(told.get("what", told)), rule=str(told.get("rule", "")), fix=str(told.get("fix", "")))
