"""Processes as the Linux kernel shows them: who descends from whom, who carries a launch tag, and how to end them.

Standard library only: the guard imports this, and it must start in milliseconds.
"""

from __future__ import annotations

import ctypes
import os
import signal
import time
from collections.abc import Callable, Iterable
from pathlib import Path

# Marks every child of a launch in its environment, so that a process which lost all its ancestors is still found.
TAG = "SIRI_LAUNCH_ID"
TITLE_APART = {"SPT_NOENV": "1"}
"""vLLM titles its engine core and workers, and setproctitle writes a title over the environment, tag and all, without
this: a core whose guard is killed would live on unseen."""

PR_SET_PDEATHSIG = 1
PR_SET_CHILD_SUBREAPER = 36
_libc = ctypes.CDLL(None, use_errno=True)


def become_subreaper() -> None:
    """Orphaned descendants are re-parented to this process, however they detached themselves (prctl(2))."""
    _prctl(PR_SET_CHILD_SUBREAPER, 1)


def die_with_parent() -> None:
    """SIGKILL this process when the thread that forked it ends (prctl(2)); inherited over exec, not over fork."""
    _prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def _prctl(option: int, value: int) -> None:
    if _libc.prctl(option, value, 0, 0, 0) != 0:
        code = ctypes.get_errno()
        raise OSError(code, f"prctl({option}, {value}): {os.strerror(code)}")


def parents() -> dict[int, int]:
    """pid -> parent pid of every process that is not a zombie."""
    table = {}
    for entry in os.listdir("/proc"):
        if entry.isdigit() and (fields := _stat(int(entry))) and fields[0] not in ("Z", "X"):
            table[int(entry)] = int(fields[1])
    return table


def in_session(leader: int) -> list[int]:
    """Living processes of the session that this process leads or led (setsid(2)). No new process gets its number
    while one is left."""
    return [pid for pid in parents() if (fields := _stat(pid)) and int(fields[3]) == leader]


def _stat(pid: int) -> list[str]:
    """State, parent pid, ...: what follows the command in /proc/pid/stat; empty if the process is gone."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return []
    return text[text.rindex(")") + 2 :].split()  # the command itself may hold spaces and brackets


def descendants(root: int) -> list[int]:
    """Living processes below `root`, nearest first."""
    children: dict[int, list[int]] = {}
    for pid, parent in parents().items():
        children.setdefault(parent, []).append(pid)
    found, queue = [], [root]
    while queue:
        below = children.get(queue.pop(0), [])
        found += below
        queue += below
    return found


def tagged(tag: str) -> list[int]:
    """Living processes (other than this one) that carry `tag` in their environment."""
    needle = f"{TAG}={tag}".encode()
    return [pid for pid in parents() if pid != os.getpid() and needle in _environment(pid)]


def _environment(pid: int) -> list[bytes]:
    try:
        return Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    except (FileNotFoundError, ProcessLookupError, PermissionError):  # gone, or somebody else's
        return []


def send(pids: Iterable[int], number: int) -> None:
    """Signal each process that still exists."""
    for pid in pids:
        try:
            os.kill(pid, number)
        except ProcessLookupError:
            continue


def end(find: Callable[[], list[int]], grace_s: float, *, limit_s: float = 5.0, reap: Callable[[], None]) -> list[int]:
    """SIGTERM everything that `find` finds, SIGKILL what is left after `grace_s`; newcomers are found again.

    Returns:
        What could not be ended within `limit_s` after SIGKILL (a process stuck in the kernel); else empty.
    """
    send(find(), signal.SIGTERM)
    left = _wait_gone(find, grace_s, reap)
    deadline = time.monotonic() + limit_s
    while left and time.monotonic() < deadline:
        send(left, signal.SIGKILL)
        left = _wait_gone(find, 0.05, reap)
    return left


def _wait_gone(find: Callable[[], list[int]], seconds: float, reap: Callable[[], None]) -> list[int]:
    deadline = time.monotonic() + seconds
    while True:
        reap()
        left = find()
        if not left or time.monotonic() >= deadline:
            return left
        time.sleep(0.05)
