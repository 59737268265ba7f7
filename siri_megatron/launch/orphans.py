"""Ends what a launch has left whose guards are gone: processes, found by its tag, with their shared memory and sockets.

Standard library only: the guard imports this.
"""

from __future__ import annotations

from collections.abc import Callable, Collection

from siri_megatron.launch import procfs
from siri_megatron.launch.shared_memory import made_by, remove_unheld
from siri_megatron.launch.sockets import remove_sockets


def end_orphans(tag: str, made: Collection[str] = (), reap: Callable[[], None] = lambda: None) -> None:
    """Kill every process that carries the tag, and remove what it held.

    Args:
        made: names in shared memory that were seen before, of processes that have ended since.
    """
    names = made_by(procfs.tagged(tag)).union(made)
    procfs.end(lambda: procfs.tagged(tag), 0.0, reap=reap)
    remove_unheld(names, procfs.parents())
    remove_sockets(tag)
