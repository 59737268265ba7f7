"""Named shared memory that a run's processes hold unasked: Python's semaphores, vLLM's buffers between workers.

Whoever makes one removes it at its end, unless everybody is killed at once. So the supervisor writes down what exists
while the fleet runs, and removes what is left at the end of the run, or before the next start in the same directory;
so with the directories of the guards (`sockets`), which have the launch tag in their names.

Only names that Python and vLLM make up are touched: a model that somebody keeps in /dev/shm is mapped as well.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from pathlib import Path

from siri_megatron.files import read_json, write_json
from siri_megatron.launch import sockets
from siri_megatron.paths import RunDir

PLACE = Path("/dev/shm")
MADE_UP = re.compile(r"sem\.mp-|psm_|vllm_dist_")
MAPPED = re.compile(r"(\d+) +/dev/shm/", re.ASCII)
"""The inode in a line of /proc/PID/maps. The name there is no use: glibc maps a semaphore before it has its name."""


def note_shared(run_dir: RunDir, tag: str, pids: Iterable[int]) -> None:
    """Note a launch, and add what these processes of it hold now, in `shared.json`."""
    noted = read_json(run_dir.shared) or {}
    held = {inode for pid in pids for inode in held_by(pid)}
    found = {entry.name for entry in os.scandir(PLACE) if MADE_UP.match(entry.name) and entry.inode() in held}
    now = {"tag": tag, "names": sorted(found.union(noted.get("names", ())))}
    if now != noted:
        write_json(run_dir.shared, now)


def remove_shared(run_dir: RunDir) -> None:
    """Remove what was noted; nobody of the run lives any more."""
    noted = read_json(run_dir.shared) or {}
    for name in noted.get("names", ()):
        (PLACE / name).unlink(missing_ok=True)
    if tag := noted.get("tag"):
        sockets.remove_places(tag)
    run_dir.shared.unlink(missing_ok=True)


def held_by(pid: int) -> set[int]:
    """Inodes in /dev/shm that a process has mapped; empty if it is gone or somebody else's."""
    try:
        return {int(inode) for inode in MAPPED.findall(Path(f"/proc/{pid}/maps").read_text())}
    except (FileNotFoundError, ProcessLookupError, PermissionError):
        return set()
