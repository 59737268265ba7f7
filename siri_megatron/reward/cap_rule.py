"""The cap rule (siri.md 1.2): the reward of a response is a function of clip(y, cap). Pure.

Invariants:
    clip_is_prefix: clip(y, cap) is the longest prefix of at most cap tokens; clip(clip(y, a), b) = clip(y, min(a, b)).
    truncated_falls: if y is truncated at a cap, it is truncated at every smaller one.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence


def clip(ids: Sequence[int], cap: int) -> list[int]:
    """The first `cap` tokens."""
    return list(ids[:cap])


def truncated(ids: Sequence[int], cap: int, stop_ids: Collection[int]) -> bool:
    """Whether no stop token stands within the first `cap` tokens."""
    return not any(token in stop_ids for token in ids[:cap])
