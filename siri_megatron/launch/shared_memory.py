"""Named shared memory that a run's processes hold unasked: Python's semaphores, vLLM's buffers between workers.

Not everybody who makes one removes it at its end. So each guard notes what its tree holds while it runs, and removes it
when the tree has ended (`made_by`, `remove_unheld`). For the case that the guards are killed too, the supervisor or
agent of every node writes down what exists while the fleet loads and runs (and the launch's tag, by which sockets are
found), and removes what is left at the end of the run, or before the next start in the same directory.

Only names that Python and vLLM make up are touched: a model that somebody keeps in /dev/shm is mapped as well.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable
from pathlib import Path

from siri_megatron.files import read_json, write_json
from siri_megatron.launch.sockets import remove_sockets

PLACE = Path("/dev/shm")
MADE_UP = re.compile(r"sem\.mp-|psm_|vllm_dist_")
MAPPED = re.compile(r"(\d+) +/dev/shm/", re.ASCII)
"""The inode in a line of /proc/PID/maps. The name there is no use: glibc maps a semaphore before it has its name."""


def note_shared(file: Path, tag: str, pids: Iterable[int],
                lost: Callable[[OSError], None] = lambda error: None) -> None:
    """Add what these processes of a launch hold now to its file (`RunDir.shared`).

    On a disk that takes no more nothing is noted, and `lost` is told: it would outlive a kill of everybody,
    and nothing else is lost.
    """
    known = read_json(file) or {}
    noted = {"tag": tag, "names": sorted(made_by(pids) | set(known.get("names", ())))}
    if noted != known:
        try:
            write_json(file, noted)
        except OSError as error:
            lost(error)


def remove_shared(file: Path) -> None:
    """Remove what was noted; nobody of the launch lives any more."""
    noted = read_json(file) or {}
    for name in noted.get("names", ()):
        (PLACE / name).unlink(missing_ok=True)
    if tag := noted.get("tag"):
        remove_sockets(tag)
    file.unlink(missing_ok=True)


def made_by(pids: Iterable[int]) -> set[str]:
    """Names, of those that Python and vLLM make up, that these processes hold."""
    held = {inode for pid in pids for inode in held_by(pid)}
    entries = os.scandir(PLACE) if held else ()  # there may be no such place
    return {entry.name for entry in entries if MADE_UP.match(entry.name) and entry.inode() in held}


def still_there(names: set[str]) -> set[str]:
    """Without those that somebody has removed meanwhile."""
    return {name for name in names if (PLACE / name).exists()}


def remove_unheld(names: set[str], living: Iterable[int]) -> None:
    """Remove those that nobody who lives holds."""
    for name in names - made_by(living) if names else ():
        (PLACE / name).unlink(missing_ok=True)


def held_by(pid: int) -> set[int]:
    """Inodes in /dev/shm that a process has mapped; empty if it is gone or somebody else's."""
    try:
        return {int(inode) for inode in MAPPED.findall(Path(f"/proc/{pid}/maps").read_text())}
    except (FileNotFoundError, ProcessLookupError, PermissionError):
        return set()
