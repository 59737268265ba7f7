"""Hostile texts: the invariants of report.text."""

from __future__ import annotations

import unicodedata

from hypothesis import given
from hypothesis import strategies as st

from siri_megatron.report.text import all_visible, fit, visible

anything = st.text(st.characters(), max_size=200)  # surrogates and controls included


@given(anything, st.integers(1, 50))
def test_bounded(text, limit):
    assert len(fit(text, limit)) <= limit + len("\n[… 1,000 characters left out …]\n")


def test_megabytes_are_bounded():
    shown = fit("a" * 5_000_000 + "the end", 1000)
    assert len(shown) < 1100
    assert shown.endswith("the end")
    assert "4,999,007 characters left out" in shown


@given(anything)
def test_visible(text):
    shown = [character for character in visible(text) if character not in "\n\t"]
    assert not {unicodedata.category(character) for character in shown} & {"Cc", "Cs"}
    assert not set(visible(text)) & set("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")


def test_visible_is_needed():
    """Negative control."""
    assert visible("a\x00b\u202ec\u061cd") == "a␀b�c�d"


@given(anything)
def test_encodable(text):
    assert visible(text).encode().decode() == visible(text)


def test_other_alphabets_stay():
    for text in ("перевірка", "日本語", "עברית", "🦆", "line\nand\ttab"):
        assert visible(text) == text


def test_all_of_a_json_value():
    assert all_visible({"a\x00": ["\x01", {"b": "\x02"}], "n": 1.5, "t": ("\x03",)}) == {
        "a␀": ["␁", {"b": "␂"}], "n": 1.5, "t": ["␃"]}
