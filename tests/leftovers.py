"""What a run may not leave behind: processes, ports it listened on, files in shared memory."""

from __future__ import annotations

import os
import re
import socket
from pathlib import Path
from urllib.parse import urlsplit

from process_table import Watch

from siri_megatron.files import read_json
from siri_megatron.paths import RunDir

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
            self._shared |= shared_files(pid)

    def processes(self) -> list[int]:
        return self._watch.left()

    def found(self) -> list[str]:
        """Processes and ports that are still there."""
        return [*(f"process {pid}" for pid in self.processes()),
                *(f"port {port}" for host, port in sorted(self._ports) if listens(host, port))]

    def shared(self) -> list[Path]:
        """Files in shared memory that are still there."""
        return [path for path in sorted(self._shared) if path.exists()]


def listens(host: str, port: int) -> bool:
    with socket.socket() as client:
        client.settimeout(2)
        return client.connect_ex((host, port)) == 0


def shared_files(pid: int) -> set[Path]:
    """What a process has mapped of /dev/shm, by inode: a semaphore is mapped before it has its name."""
    try:
        held = {int(inode) for inode in SHARED.findall(Path(f"/proc/{pid}/maps").read_text())}
    except OSError:
        return set()
    return {Path(entry.path) for entry in os.scandir("/dev/shm") if entry.inode() in held}
