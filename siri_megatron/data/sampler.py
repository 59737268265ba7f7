"""Which prompts a step takes. Pure: a function of (seed, step), so resuming needs nothing but the step.

A step's own prompts come from one stream over the whole run. Those that replace some of them (dynamic sampling) come
from a stream of the step's own, so the first one neither skips nor repeats a prompt because of them.

Invariants:
    each_once_an_epoch: over the n positions of an epoch every prompt is taken exactly once.
    pure: `take(step, count)` depends on n, seed, step and count alone; steps taken in any order agree.
    seamless: at the end of an epoch the step is filled up from the next one (never a short or an empty step).
    refills_are_others: further prompts are none of the step's own, and none comes twice, as long as there are others.
    refills_are_a_prefix: more of them begin with the fewer.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray


class PromptSampler:
    """Order of the training prompts, reshuffled every epoch.

    Args:
        n: number of prompts, at least 1.
        seed: the run's seed.
    """

    def __init__(self, n: int, seed: int) -> None:
        if n < 1:
            raise ValueError(f"cannot sample from {n} prompts")
        self.n, self.seed = n, seed
        self._order = lru_cache(maxsize=2)(self._shuffled)

    def take(self, step: int, count: int) -> list[int]:
        """Indices of the `count` prompts of a step (the same count at every step of a run)."""
        positions = range(step * count, (step + 1) * count)
        return [int(self._order(position // self.n)[position % self.n]) for position in positions]

    def further(self, step: int, count: int, wanted: int) -> list[int]:
        """Indices of the first `wanted` prompts that a step with `count` own ones asks for beyond those."""
        order = np.random.default_rng([self.seed, step, 1]).permutation(self.n)
        others = order[~np.isin(order, self.take(step, count))]
        return [int(index) for index in np.resize(others if len(others) else order, wanted)]

    def _shuffled(self, epoch: int) -> NDArray[np.int64]:
        return np.random.default_rng([self.seed, epoch]).permutation(self.n)
