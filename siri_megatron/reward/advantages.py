"""Group-relative advantages (GRPO, DeepSeekMath 2402.03300 eq. 3; Dr.GRPO 2503.20783). Pure numpy.

A reward of NaN means "no verdict" (the verifier failed): it takes no part in its group's statistics and gets 0.

Invariants:
- zero_sum: the advantages of a group add up to 0.
- uniform_groups_are_zero: a group whose rewards are all equal (or a group of one) gets exactly 0.0, not float noise.
- order_free: a row's advantage depends on its group's rewards alone, wherever the rows stand.
- unaffected_by_failures: rows without a verdict get 0.0 and leave the others' advantages as if they were not there.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

AdvantageName = Literal["group_std", "group_mean"]
STD_GUARD = 1e-6
"""Added to the standard deviation, as in verl, the framework of the paper's runs."""


def group_mean(rewards: ArrayLike, groups: ArrayLike) -> NDArray[np.float64]:
    """R - mean of the group (Dr.GRPO). rewards: [n] float, groups: [n] int; returns [n] float64."""
    return _centred(rewards, groups)[0]


def group_std(rewards: ArrayLike, groups: ArrayLike) -> NDArray[np.float64]:
    """(R - mean) / (std + 1e-6) within the group; std is the *sample* one (n - 1), as in verl and TRL."""
    centred, inverse, counts = _centred(rewards, groups)
    variance = np.bincount(inverse, centred**2, len(counts)) / np.maximum(counts - 1, 1)
    return centred / (np.sqrt(variance) + STD_GUARD)[inverse]


def advantages(kind: AdvantageName, rewards: ArrayLike, groups: ArrayLike) -> NDArray[np.float64]:
    """The advantage function of a name in `algorithm.advantage`."""
    return {"group_std": group_std, "group_mean": group_mean}[kind](rewards, groups)


def uniform_groups(rewards: ArrayLike, groups: ArrayLike) -> NDArray[np.bool_]:
    """[n] True for the rows of groups whose verdicts are all equal (groups without any verdict included)."""
    reward, (_, inverse) = np.asarray(rewards, np.float64), np.unique(groups, return_inverse=True)
    highest, lowest = np.full(len(reward), -np.inf), np.full(len(reward), np.inf)
    judged = ~np.isnan(reward)
    np.maximum.at(highest, inverse[judged], reward[judged])
    np.minimum.at(lowest, inverse[judged], reward[judged])
    return np.asarray((highest <= lowest)[inverse])


def _centred(rewards: ArrayLike, groups: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.intp], NDArray[np.intp]]:
    """(reward minus group mean [n], group index of each row [n], verdicts of each group)."""
    reward, (_, inverse) = np.asarray(rewards, np.float64), np.unique(groups, return_inverse=True)
    judged = ~np.isnan(reward)
    counts = np.bincount(inverse, judged).astype(np.intp)
    mean = np.bincount(inverse, np.where(judged, reward, 0.0)) / np.maximum(counts, 1)
    signal = judged & ~uniform_groups(reward, groups)
    return np.where(signal, reward - mean[inverse], 0.0), inverse, counts
