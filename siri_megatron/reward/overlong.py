"""What becomes of a sample that does not end within its cap. Pure numpy.

The ledger holds the verdict on clip(y, cap); what is made of it here is for the advantages only, so accuracy and J(B)
never depend on it.

    zero    the verdict stands: an unfinished response has no answer, is worth 0, and stays in its group (SIRI)
    mask    truncated samples have no verdict: they leave the loss, its denominators and every statistics
    soft    DAPO's soft overlong punishment is added, to right and wrong ones alike
    forced  the collector forced an answer before the cap (`rollout.forced`); the verdict on the whole stands

`mask` is what Skywork-OR1 (arXiv 2505.22312) calls the mask *before* the advantages. It saw more and more responses
truncated with it, since nothing speaks against them; less so where they stayed in the group's mean ("after"); and the
best use of tokens without any mask. Before is offered because it treats a cut response as what it is, unknown; with
after, it would still lower the others' baseline. Here masked samples leave the denominators too; Skywork's stayed there
with advantage 0.

Invariants:
- zero_changes_nothing: `zero` and `forced` give the verdicts back.
- masked_has_no_verdict: with `mask` a truncated sample is NaN, every other one unchanged.
- soft_adds_the_ramp: with `soft` a reward changes by the ramp alone, by -1 to 0.
- failures_stay: a sample without a verdict has none under any rule.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from siri_megatron.config import Overlong
from siri_megatron.reward.overlong_ramp import overlong_ramp


def shaped(rule: Overlong, rewards: ArrayLike, lengths: ArrayLike, truncated: ArrayLike, *, cap: ArrayLike,
           buffer: float) -> NDArray[np.float64]:
    """[n] what the advantages are made of; NaN: no verdict.

    Args:
        rewards: [n] verdicts at the cap, NaN where there is none.
        lengths: [n] response tokens.
        truncated: [n] bool: no stop token within the cap.
        cap: [n] or one number: the stamped cap of each row.
        buffer: soft: share of the cap over which the ramp falls.
    """
    reward = np.asarray(rewards, np.float64)
    if rule == "mask":
        return np.where(np.asarray(truncated, bool), np.nan, reward)
    return reward + overlong_ramp(lengths, cap, buffer) if rule == "soft" else reward
