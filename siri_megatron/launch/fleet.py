"""Asking engines whether they live, and the fleet file that tells everybody where they are."""

from __future__ import annotations

import http.client
import json
import threading
import time
import urllib.parse
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from siri_megatron.files import read_json, write_json
from siri_megatron.paths import RunDir
from siri_megatron.rollout.vllm_surface import CORE_ALIVE, HEALTH

PROBE_TIMEOUT_S = 5.0
PROBE_EVERY_S = 1.0


@contextmanager
def answered(url: str, key: str, method: str, route: str, body: Any = None, *,
             timeout_s: float) -> Iterator[http.client.HTTPResponse]:
    """A server's answer. Uses no proxy, whatever the environment says.

    body: sent as JSON; None: no body.

    Raises:
        OSError, http.client.HTTPException: it cannot be reached, or does not speak HTTP.
    """
    address = urllib.parse.urlsplit(url)
    connection = http.client.HTTPConnection(address.hostname or "", address.port, timeout=timeout_s)
    headers = {"Authorization": f"Bearer {key}"}
    try:
        if body is None:
            connection.request(method, route, headers=headers)
        else:
            connection.request(method, route, json.dumps(body), headers | {"Content-Type": "application/json"})
        yield connection.getresponse()
    finally:
        connection.close()


def ask(url: str, key: str, method: str, route: str, body: Any = None, *, timeout_s: float) -> int | None:
    """Status of a server's answer (`answered`); None if it cannot be reached."""
    try:
        with answered(url, key, method, route, body, timeout_s=timeout_s) as answer:
            return answer.status
    except (OSError, http.client.HTTPException):
        return None


def healthy(url: str, key: str) -> bool:
    """True if the server answers /health with 200."""
    return ask(url, key, "GET", HEALTH, timeout_s=PROBE_TIMEOUT_S) == 200


class Probe:
    """Asks one server, and its core, once a second, in threads of its own: one that hangs keeps nobody else waiting.

    Args:
        core_s: how long the core may take to answer; it is busy during a step and a push.
    """

    def __init__(self, url: str, key: str, core_s: float) -> None:
        self.answered_at = 0.0
        """When (time.monotonic) the question was sent that the server answered last."""
        self.worked_at = 0.0
        """The same of the core."""
        self._url, self._key, self._core_s, self._stop = url, key, core_s, threading.Event()
        for loop in (self._ask_server, self._ask_core):
            threading.Thread(target=loop, name=f"probe {url}", daemon=True).start()

    def stop(self) -> None:
        """Ask no more."""
        self._stop.set()

    def _ask_server(self) -> None:
        while not self._stop.is_set():
            asked = time.monotonic()
            if healthy(self._url, self._key):
                self.answered_at = asked
            self._stop.wait(PROBE_EVERY_S)

    def _ask_core(self) -> None:
        while not self._stop.wait(PROBE_EVERY_S):
            asked = time.monotonic()
            if ask(self._url, self._key, "GET", CORE_ALIVE, timeout_s=self._core_s) == 200:
                self.worked_at = asked


def next_epoch(run_dir: RunDir) -> int:
    """Epoch of the next fleet: one more than the last one that this run had. Removes the old fleet files."""
    last = read_json(run_dir.fleet) or {}
    for path in (run_dir.fleet, run_dir.pushed, *run_dir.accused.glob("*.json")):
        path.unlink(missing_ok=True)
    return int(last.get("epoch", 0)) + 1


def publish(run_dir: RunDir, members: Sequence[dict[str, Any]], *, epoch: int, model: str) -> None:
    """Write fleet.json: these engines may be talked to."""
    write_json(run_dir.fleet, {"epoch": epoch, "model": model, "engines": list(members)})
