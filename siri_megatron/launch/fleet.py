"""Engines on their way to being healthy, and the fleet file that tells everybody where they are."""

from __future__ import annotations

import http.client
import urllib.parse
from collections.abc import Sequence

from siri_megatron.files import read_json, write_json
from siri_megatron.launch.child import Child
from siri_megatron.paths import RunDir

PROBE_TIMEOUT_S = 2.0


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


def next_epoch(run_dir: RunDir) -> int:
    """Epoch of the next fleet: one more than the last one that this run had. Removes the old fleet file."""
    last = read_json(run_dir.fleet) or {}
    run_dir.fleet.unlink(missing_ok=True)
    return int(last.get("epoch", 0)) + 1


def publish(run_dir: RunDir, engines: Sequence[Child], *, epoch: int, model: str) -> None:
    """Write fleet.json: from now on engines may be talked to."""
    write_json(run_dir.fleet, {
        "epoch": epoch, "model": model,
        "engines": [{"index": index, "url": child.spec.url, "tp": 1, "pid": child.pid}
                    for index, child in enumerate(engines)]})
