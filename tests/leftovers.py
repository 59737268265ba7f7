"""What a run may not leave behind: processes, ports it listened on, files in shared memory, Unix sockets."""

from __future__ import annotations

import os
import re
import socket
from contextlib import suppress
from pathlib import Path
from urllib.parse import urlsplit

from process_table import Watch

from siri_megatron.files import read_json
from siri_megatron.paths import RunDir

WORKER, LISTENING = "PYTEST_XDIST_WORKER", "0A"
SHARED = re.compile(r"(\d+) +/dev/shm/")


class Leftovers:
    """What a run holds, noted while it lives (`note`), looked for afterwards (`found`).

    Args:
        given: of an engine that is not the run's own.
    """

    def __init__(self, paths: RunDir, watch: Watch, given: str = "") -> None:
        self._paths, self._watch, self._given = paths, watch, given
        self._ports: set[tuple[str, int]] = set()
        self._shared = {*paths.shared_weights}

    def note(self) -> None:
        """Look at the run as it is now."""
        urls = [engine["url"] for engine in (read_json(self._paths.fleet) or {}).get("engines", ())]
        urls += [told["url"] for told in [read_json(self._paths.collector)] if told]
        own = [urlsplit(url) for url in urls if url != self._given]
        self._ports |= {(str(parts.hostname), int(parts.port or 0)) for parts in own}
        if store := read_json(self._paths.rendezvous):
            self._ports.add((store["host"], store["port"]))
        for pid in self._watch.left():
            self._shared |= shared_files(pid) | socket_files(pid)

    def processes(self) -> list[int]:
        return self._watch.left()

    def found(self) -> list[str]:
        """Processes and ports that are still there."""
        return [*(f"process {pid}" for pid in self.processes()),
                *(f"port {port}" for host, port in sorted(self._ports)
                  if listens(host, port) and not of_another_worker(port))]

    def shared(self) -> list[Path]:
        """Files in shared memory, and Unix sockets, that are still there."""
        return [path for path in sorted(self._shared) if path.exists()]


def listens(host: str, port: int) -> bool:
    with socket.socket() as client:
        client.settimeout(2)
        return client.connect_ex((host, port)) == 0


def of_another_worker(port: int) -> bool:
    """The port was free, and a test beside this one has taken it: its processes know their xdist worker."""
    rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    sockets = {f"socket:[{row[9]}]" for row in rows if row[3] == LISTENING and row[1].endswith(f":{port:04X}")}
    mine = f"{WORKER}={os.environ.get(WORKER, '')}".encode()
    found = {environment for place in Path("/proc").glob("[0-9]*") if (environment := holding(place, sockets))}
    return bool(found) and all(WORKER.encode() in one and mine not in one.split(b"\0") for one in found)


def holding(place: Path, sockets: set[str]) -> bytes:
    """The environment of a process that has one of these open; empty if it has none, or is gone."""
    try:
        held = any(os.readlink(entry.path) in sockets for entry in os.scandir(place / "fd"))
        return (place / "environ").read_bytes() if held else b""
    except OSError:
        return b""


def socket_files(pid: int) -> set[Path]:
    """The Unix sockets that a process has bound to a path."""
    rows = [line.split() for line in Path("/proc/net/unix").read_text().splitlines()[1:]]
    bound = {f"socket:[{row[6]}]": Path(row[7]) for row in rows if len(row) == 8 and row[7].startswith("/")}
    found = set()
    with suppress(OSError):  # it is gone, or has closed one meanwhile
        for entry in os.scandir(f"/proc/{pid}/fd"):
            found.add(os.readlink(entry.path))
    return {path for name, path in bound.items() if name in found}


def shared_files(pid: int) -> set[Path]:
    """What a process has mapped of /dev/shm, by inode: a semaphore is mapped before it has its name."""
    try:
        held = {int(inode) for inode in SHARED.findall(Path(f"/proc/{pid}/maps").read_text())}
    except OSError:
        return set()
    return {Path(entry.path) for entry in os.scandir("/dev/shm") if entry.inode() in held}
