"""How long responses would be if nothing cut them, and what a cap leaves of them. Pure.

A distribution is a list of equal-mass quantiles. A step's lengths are taken at evenly spread points of it, not drawn:
an estimate then has no noise. That the policy's lengths do not change while it is trained is an assumption; give
measured ones, or a run, to see what other lengths would cost.

Invariants:
- clipped_at_the_cap: no response is longer than the cap, none shorter than 1.
- longer_caps_longer_responses: each response at a larger cap is at least as long.
- deterministic: equal arguments give equal lengths.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from siri_megatron.errors import DataError

POINTS = 512
R1_SIGMA = 0.93
"""Of the log-normal that fits the output lengths of DeepSeek-R1 requests (ServeGen's traces, Apache-2.0)."""
DEFAULT_SHARE = 0.4
"""Median length over l_max where nothing is known. With R1_SIGMA and l_max=16384, 40 % of the responses would pass 8192
tokens and their mean under that cap would be 5.3 k: what DeepScaleR reports of R1-Distill-Qwen-1.5B at its start (42 %,
5.5 k)."""
NAMES = "default, r1, full, lognormal:MEDIAN[:SIGMA]"


@dataclass(frozen=True)
class Lengths:
    """Uncut response lengths and prompt lengths of the training prompts."""

    quantiles: tuple[float, ...]
    """Equal-mass points, ascending, tokens."""
    prompt: float
    """Mean prompt, tokens."""
    origin: str
    """In words: where they come from."""
    measured: bool

    def responses(self, cap: int, count: int) -> NDArray[np.int64]:
        """[count] lengths under the cap, in an order that has nothing to do with length."""
        points = (np.arange(len(self.quantiles)) + 0.5) / len(self.quantiles)
        lengths = np.interp((np.arange(count) + 0.5) / count, points, self.quantiles)
        return np.random.default_rng(0).permutation(np.clip(np.rint(lengths), 1, cap).astype(np.int64))

    def truncated(self, cap: int) -> float:
        """Share of responses that would go beyond the cap."""
        return float(np.mean(np.asarray(self.quantiles) > cap))


def lognormal(median: float, sigma: float, *, prompt: float, origin: str = "", measured: bool = False) -> Lengths:
    normal = NormalDist(math.log(median), sigma)
    quantiles = tuple(math.exp(normal.inv_cdf((point + 0.5) / POINTS)) for point in range(POINTS))
    return Lengths(quantiles, prompt, origin or f"log-normal, median {median:,.0f} tokens, sigma {sigma:g}", measured)


def of_samples(lengths: Sequence[float], *, prompt: float, origin: str) -> Lengths:
    """From measured lengths (or quantiles of them).

    Raises:
        DataError: there is none, or one is not positive.
    """
    values = np.sort(np.asarray(lengths, np.float64)) if len(lengths) else np.zeros(0)
    if not len(values) or not np.isfinite(values).all() or values[0] <= 0:
        raise DataError(f"{origin}: {len(values)} lengths, the smallest {values[0] if len(values) else 'none'}",
                        rule="lengths are positive numbers of tokens", fix="give a JSON list of response lengths")
    kept = values if len(values) <= POINTS else np.quantile(values, (np.arange(POINTS) + 0.5) / POINTS)
    return Lengths(tuple(kept.tolist()), prompt, origin, measured=True)


def named(name: str, l_max: int, *, prompt: float) -> Lengths | None:
    """One of NAMES; None if it is none of them."""
    kind, *numbers = name.split(":")
    try:
        values = [float(number) for number in numbers]
    except ValueError:
        return None
    if kind == "default" and not values:
        return lognormal(DEFAULT_SHARE * l_max, R1_SIGMA, prompt=prompt)
    if kind == "r1" and not values:
        return lognormal(595, R1_SIGMA, prompt=prompt, origin="DeepSeek-R1 requests (ServeGen), median 595 tokens")
    if kind == "full" and not values:
        return Lengths((float(l_max),), prompt, f"every response {l_max:,} tokens", measured=False)
    if kind == "lognormal" and len(values) in (1, 2) and all(value > 0 for value in values):
        return lognormal(values[0], values[1] if len(values) > 1 else R1_SIGMA, prompt=prompt)
    return None
