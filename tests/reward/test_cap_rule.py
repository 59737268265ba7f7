"""The cap rule against its definition."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from siri_megatron.reward.cap_rule import clip, truncated

tokens = st.lists(st.integers(0, 9), max_size=20)
caps = st.integers(0, 25)


@given(tokens, caps, caps)
def test_clip_is_prefix(ids: list[int], a: int, b: int) -> None:
    assert clip(ids, a) == [token for at, token in enumerate(ids) if at < a]
    assert clip(clip(ids, a), b) == clip(ids, min(a, b))


@given(tokens, caps, caps)
def test_truncated_falls(ids: list[int], a: int, b: int) -> None:
    small, large = sorted((a, b))
    assert truncated(ids, small, (7,)) >= truncated(ids, large, (7,))
    assert truncated(ids, large, (7,)) == (7 not in ids[:large])
