"""Which CPU cores of this machine engines and learners use. Pure.

Without a lag they take turns, so each side has them all. With one they work at the same time: each core belongs to one
side, so that neither waits for the other's threads.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from siri_megatron.config import RunConfig


@dataclass(frozen=True)
class Cores:
    engines: tuple[int, ...]
    learners: tuple[int, ...]


def share_cores(config: RunConfig, cores: Sequence[int]) -> Cores:
    """Learners get a core a thread, at the end, but leave one for each engine, or half of all if there are too few."""
    every = tuple(cores)
    if not config.rollout.lag or len(every) < 2:
        return Cores(every, every)
    wanted = config.learner.world_size * config.learner.threads
    first = len(every) - min(wanted, max(len(every) // 2, len(every) - config.engines.count))
    return Cores(every[:first], every[first:])
