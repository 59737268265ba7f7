"""DOT, dynamic outlier truncation: in a group that is all right, the outliers among the lengths are cut. Pure.

    T = floor(mean + multiplier x standard deviation) of the group's lengths
    every response with |y| - T >= margin is cut at T, and judged again: what is trained on is the cut text

Source: arXiv 2601.03969, and its repository U-rara/DOT: the deviation is the *sample* one (n - 1), 3 deviations, margin
32. Cutting happens when a group is finished, so the ledger holds what is trained on. Of n numbers none lies more than
(n - 1)/sqrt(n) sample deviations above their mean: groups of fewer than 11 are never cut at 3, and the config says so.

Invariants:
- all_right_only: a group with one wrong or missing verdict is left alone.
- outliers_only: what is cut was longer than T by the margin at least, and is T long afterwards.
- never_empty: T is at least the group's mean length, so no response loses all its tokens.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence

from siri_megatron.config import DotConfig


def outliers(lengths: Sequence[int], rewards: Sequence[float], config: DotConfig) -> tuple[int, list[int]]:
    """(T, the samples to cut at T) of a finished group; nothing to cut: no samples.

    Args:
        lengths: response tokens of each sample.
        rewards: 1 right, 0 wrong, between them partly right (not all right), NaN no verdict.
    """
    if len(lengths) < 2 or any(reward != 1.0 for reward in rewards):
        return max(lengths, default=0), []
    limit = math.floor(statistics.mean(lengths) + config.std_multiplier * statistics.stdev(lengths))
    return limit, [sample for sample, length in enumerate(lengths) if length - limit >= config.margin]
