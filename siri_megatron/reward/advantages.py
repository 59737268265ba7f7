"""Group-relative advantages: what a reward is compared with, and what it is divided by. Pure numpy.

A reward of NaN means "no verdict" (the verifier failed): it takes no part in any statistics and gets 0.

Two sets of rows: a *group's* statistics are over all its verdicts; those of the *batch* (the rollout step, all its
optimizer steps and ranks together) over the rows that are trained on, so dropped groups and rows do not enter them.

Invariants:
- zero_sum: the advantages of a group add up to 0.
- uniform_groups_are_zero: a group whose rewards are all equal (or a group of one) gets exactly 0.0, not float noise.
- order_free: a row's advantage depends on rewards and groups alone, wherever the rows stand.
- unaffected_by_failures: rows without a verdict get 0.0 and leave the others' advantages as if they were not there.
- batch_is_what_is_trained_on: rows that are not trained on leave the batch statistics as if they were not there.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from siri_megatron.config import Advantage

STD_GUARD = 1e-6
"""Added to the standard deviation, as in verl, the framework of the paper's runs."""


def group_mean(rewards: ArrayLike, groups: ArrayLike) -> NDArray[np.float64]:
    """R - mean of the group (Dr.GRPO, arXiv 2503.20783). rewards: [n] float, groups: [n] int; returns [n] float64."""
    return _centred(rewards, groups)[0]


def group_std(rewards: ArrayLike, groups: ArrayLike) -> NDArray[np.float64]:
    """(R - mean) / (std + 1e-6) within the group (GRPO, arXiv 2402.03300 section 4.1.2).

    std is the *sample* one (n - 1), as in verl and TRL.
    """
    centred, inverse, counts = _centred(rewards, groups)
    variance = np.bincount(inverse, centred**2, len(counts)) / np.maximum(counts - 1, 1)
    return centred / (np.sqrt(variance) + STD_GUARD)[inverse]


def leave_one_out(rewards: ArrayLike, groups: ArrayLike) -> NDArray[np.float64]:
    """R - mean of the *others* of the group, which is n/(n - 1) (R - mean) (RLOO, arXiv 2402.14740)."""
    centred, inverse, counts = _centred(rewards, groups)
    return centred * (counts / np.maximum(counts - 1, 1))[inverse]


def batch_std(rewards: ArrayLike, groups: ArrayLike, trained: ArrayLike) -> NDArray[np.float64]:
    """(R - group mean) / (std + 1e-6), the sample std of R - group mean over the batch's trained rows.

    DLER (arXiv 2510.15110), REINFORCE++-baseline (arXiv 2501.03262). A group that is nearly uniform is not blown up,
    which matters when a tight cap makes most answers wrong. The batch mean, which REINFORCE++ takes away too, is 0
    already, as each group's is. trained: [n] bool.
    """
    centred = _centred(rewards, groups)[0]
    counted = centred[np.asarray(trained, bool) & ~np.isnan(np.asarray(rewards, np.float64))]
    return centred / ((counted.std(ddof=1) if len(counted) > 1 else 0.0) + STD_GUARD)


def advantages(kind: Advantage, rewards: ArrayLike, groups: ArrayLike, trained: ArrayLike) -> NDArray[np.float64]:
    """The advantage function of a name in `algorithm.advantage`. trained: [n] bool, read by batch_std."""
    if kind == "batch_std":
        return batch_std(rewards, groups, trained)
    return {"group_std": group_std, "group_mean": group_mean, "leave_one_out": leave_one_out}[kind](rewards, groups)


def uniform_groups(rewards: ArrayLike, groups: ArrayLike) -> NDArray[np.bool_]:
    """[n] True for the rows of groups whose verdicts are all equal (groups without any verdict included)."""
    reward, (_, inverse) = np.asarray(rewards, np.float64), np.unique(groups, return_inverse=True)
    highest, lowest = np.full(len(reward), -np.inf), np.full(len(reward), np.inf)
    judged = ~np.isnan(reward)
    np.maximum.at(highest, inverse[judged], reward[judged])
    np.minimum.at(lowest, inverse[judged], reward[judged])
    return np.asarray((highest <= lowest)[inverse])


def uniform_share(rewards: ArrayLike, groups: ArrayLike) -> float:
    """Share of the groups that are uniform; 0 without groups."""
    groups = np.asarray(groups)
    return len(np.unique(groups[uniform_groups(rewards, groups)])) / max(1, len(np.unique(groups)))


def _centred(rewards: ArrayLike, groups: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.intp], NDArray[np.intp]]:
    """(reward minus group mean [n], group index of each row [n], verdicts of each group)."""
    reward, (_, inverse) = np.asarray(rewards, np.float64), np.unique(groups, return_inverse=True)
    judged = ~np.isnan(reward)
    counts = np.bincount(inverse, judged).astype(np.intp)
    mean = np.bincount(inverse, np.where(judged, reward, 0.0)) / np.maximum(counts, 1)
    signal = judged & ~uniform_groups(reward, groups)
    return np.where(signal, reward - mean[inverse], 0.0), inverse, counts
