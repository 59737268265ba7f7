"""Which tokens of a row each context-parallel rank holds. Pure, no torch.

Every segment is cut into 2 x size equal chunks, and rank r takes chunks r and 2 x size - 1 - r: the r-th from the front
and the r-th from the end, so that causal attention costs every rank the same. It is the cut of Transformer Engine
(`thd_get_partitioned_indices`) and of megatron-core (`_get_thd_freqs_on_this_cp_rank`, `get_pos_emb_on_this_cp_rank`).

Invariants:
- each_token_once: the ranks together hold every token exactly once.
- equal_shares: every rank holds as many tokens of each segment.
- equal_work: for every segment, the positions that a rank holds have the same sum on every rank.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from siri_megatron.errors import DataError


def zigzag(lengths: NDArray[np.int64], size: int) -> NDArray[np.int64]:
    """[size, tokens / size] numbers in the row of the tokens that each rank holds, in its order.

    Args:
        lengths: [segments] tokens, in the row's order; each a multiple of 2 x size if size > 1; 0 is none.

    Raises:
        DataError: a length that cannot be cut.
    """
    lengths = np.asarray(lengths, np.int64)
    if size == 1:
        return np.arange(lengths.sum())[None]
    if (wrong := lengths[(lengths % (2 * size) != 0) | (lengths < 0)]).size:
        raise DataError(f"a segment of {wrong[0]} tokens cannot be cut over {size} context-parallel ranks",
                        rule="padded segments are multiples of 2 x learner.cp, and fit their row",
                        fix="plan the step for this layout (plan_step's cp)")
    own, begins = lengths // size, np.cumsum(lengths) - lengths
    chunk, begin = np.repeat(own // 2, own), np.repeat(begins, own)
    inside = np.arange(own.sum()) - np.repeat(np.cumsum(own) - own, own)
    from_front, ranks = inside < chunk, np.arange(size)[:, None]
    return begin + inside + chunk * np.where(from_front, ranks, 2 * size - 2 - ranks)
