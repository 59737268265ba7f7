"""DAPO's soft overlong punishment: a ramp from 0 to -1 over the last part of what a response may have. Pure numpy.

The paper's buffer is a number of tokens (4,096 of 20,480) under a cap that never moves. Here it is a *share* of the
cap that is stamped on the row (0.2 by default, the paper's own ratio): in tokens, a buffer made for the top of a cycle
would swallow the whole cap at its bottom, and then every response would be punished.

Invariants:
- bounded: -1 <= penalty <= 0.
- free_below_the_buffer: 0 up to cap - buffer tokens.
- falls_with_length: never rises with the length; -1 from the cap on.
- scale_free: the penalty depends on length/cap and the share alone.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray


def overlong_ramp(length: ArrayLike, cap: ArrayLike, buffer: float) -> NDArray[np.float64]:
    """Penalty of each response: 0 if |y| <= L - B, (L - B - |y|)/B up to L, -1 beyond, with B = buffer x L.

    Source: DAPO, arXiv 2503.14476 eq. 13. There as here it is added to the reward of right and wrong responses alike.

    Args:
        length: [n] response tokens.
        cap: [n] or one number: the stamped cap of each row, L.
        buffer: share of the cap, 0 < buffer <= 1.
    """
    allowed = np.asarray(cap, np.float64)
    free, width = allowed * (1 - buffer), allowed * buffer
    return np.clip((free - np.asarray(length, np.float64)) / width, -1.0, 0.0)
