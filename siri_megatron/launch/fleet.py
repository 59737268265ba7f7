"""Asking engines whether they live, and the fleet file that tells everybody where they are."""

from __future__ import annotations

import http.client
import threading
import time
import urllib.parse
from collections.abc import Sequence
from typing import Any

from siri_megatron.files import read_json, write_json
from siri_megatron.paths import RunDir

PROBE_TIMEOUT_S = 5.0
PROBE_EVERY_S = 1.0


def healthy(url: str, key: str) -> bool:
    """True if the server answers /health with 200. Uses no proxy, whatever the environment says."""
    address = urllib.parse.urlsplit(url)
    connection = http.client.HTTPConnection(address.hostname or "", address.port, timeout=PROBE_TIMEOUT_S)
    try:
        connection.request("GET", "/health", headers={"Authorization": f"Bearer {key}"})
        return connection.getresponse().status == 200
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


class Probe:
    """Asks one server once a second, in a thread of its own: a server that hangs keeps nobody else waiting."""

    def __init__(self, url: str, key: str) -> None:
        self.answered_at = 0.0
        """When (time.monotonic) the question was sent that was answered last."""
        self._url, self._key, self._stop = url, key, threading.Event()
        threading.Thread(target=self._loop, name=f"probe {url}", daemon=True).start()

    def stop(self) -> None:
        """Ask no more."""
        self._stop.set()

    def _loop(self) -> None:
        while not self._stop.is_set():
            asked = time.monotonic()
            if healthy(self._url, self._key):
                self.answered_at = asked
            self._stop.wait(PROBE_EVERY_S)


def next_epoch(run_dir: RunDir) -> int:
    """Epoch of the next fleet: one more than the last one that this run had. Removes the old fleet files."""
    last = read_json(run_dir.fleet) or {}
    for path in (run_dir.fleet, run_dir.pushed, *run_dir.accused.glob("*.json")):
        path.unlink(missing_ok=True)
    return int(last.get("epoch", 0)) + 1


def publish(run_dir: RunDir, members: Sequence[dict[str, Any]], *, epoch: int, model: str) -> None:
    """Write fleet.json: these engines may be talked to."""
    write_json(run_dir.fleet, {"epoch": epoch, "model": model, "engines": list(members)})
