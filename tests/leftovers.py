"""What a run may not leave behind: processes, ports it listened on, files in shared memory."""

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

SHARED = re.compile(r"/dev/shm/[^\s)]+")


class Leftovers:
    """What a run holds, noted while it lives (`note`), looked for afterwards (`found`)."""

    def __init__(self, paths: RunDir, watch: Watch) -> None:
        self._paths, self._watch = paths, watch
        self._ports: set[tuple[str, int]] = set()
        self._shared = {paths.shared_weights}

    def note(self) -> None:
        """Look at the run as it is now."""
        urls = [engine["url"] for engine in (read_json(self._paths.fleet) or {}).get("engines", ())]
        urls += [told["url"] for told in [read_json(self._paths.collector)] if told]
        self._ports |= {(str(parts.hostname), int(parts.port or 0)) for parts in map(urlsplit, urls)}
        if store := read_json(self._paths.rendezvous):
            self._ports.add((store["host"], store["port"]))
        for pid in self._watch.left():
            self._shared |= shared_files(pid)

    def processes(self) -> list[int]:
        return self._watch.left()

    def found(self, *, but: tuple[Path, ...] = ()) -> list[str]:
        """Everything that is still there."""
        return [*(f"process {pid}" for pid in self.processes()),
                *(f"port {port}" for host, port in sorted(self._ports) if listens(host, port)),
                *(str(path) for path in sorted(self._shared - set(but)) if path.exists())]


def listens(host: str, port: int) -> bool:
    with socket.socket() as client:
        client.settimeout(2)
        return client.connect_ex((host, port)) == 0


def shared_files(pid: int) -> set[Path]:
    """Files in /dev/shm that a process has mapped or open, and that have a name."""
    found: set[str] = set()
    with suppress(OSError):
        found |= set(SHARED.findall(Path(f"/proc/{pid}/maps").read_text()))
        found |= {name for fd in os.scandir(f"/proc/{pid}/fd") for name in [os.readlink(fd.path)]
                  if name.startswith("/dev/shm/")}
    return {Path(name) for name in found if "(deleted)" not in name and Path(name).exists()}
