from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from siri_megatron.observe import render


@pytest.mark.parametrize(("shown", "expected"), [
    (render.percent(0.7125), "71.2%"), (render.percent(None), "–"), (render.number(1234.56), "1,234.6"),
    (render.number(0.214, 2, " s"), "0.21 s"), (render.number(None, 2, " s"), "–"), (render.rate(8123.0), "8.1k/s"),
    (render.rate(812.3), "812/s"), (render.rate(None), "–"), (render.duration(59.6), "1:00"),
    (render.duration(3671.0), "1:01:11"), (render.duration(None), "–"), (render.sparkline([1, 2, 3]), "▁▅█"),
    (render.sparkline([]), ""), (render.sparkline([2, None, 2]), "▁▁"), (render.sparkline([0, 0, 7, 7], width=2), "▁█"),
])
def test_shown(shown, expected):
    assert shown == expected


@given(st.lists(st.floats(-1e6, 1e6), max_size=200), st.integers(1, 60))
def test_sparkline_fits(values, width):
    line = render.sparkline(values, width)
    assert len(line) == min(width, len(values))
    assert set(line) <= set(render.BLOCKS)
