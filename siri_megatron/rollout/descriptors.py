"""File descriptors: every open request holds one, and the usual soft limit of 1,024 is soon reached."""

from __future__ import annotations

import resource

WANTED = 16384
RESERVED = 128  # ledger, logs, workers, the collector's own clients


def raise_limit() -> int:
    """Raise the soft limit towards the hard one; returns how many connections may be open at a time."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    target = WANTED if hard == resource.RLIM_INFINITY else min(WANTED, hard)
    if soft != resource.RLIM_INFINITY and soft < target:
        resource.setrlimit(resource.RLIMIT_NOFILE, (target, hard))
        soft = target
    return connections_for(soft)


def connections_for(soft_limit: int) -> int:
    """Connections that leave the reserve alone; at least one, at most WANTED."""
    return WANTED if soft_limit == resource.RLIM_INFINITY else max(1, min(WANTED, soft_limit - RESERVED))
