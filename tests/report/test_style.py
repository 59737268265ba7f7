"""Colours and shapes that everybody can tell apart."""

from __future__ import annotations

import re
from importlib.resources import files

import pytest

from siri_megatron.report import style

CSS = (files("siri_megatron.report") / "page.css").read_text()
PAPERS = re.findall(r"--paper: (#\w{6})", CSS)
USED = {*style.COLOURS, *style.STAGES.values(), *(colour for colour, _ in style.KINDS.values())}


def luminance(colour: str) -> float:
    """Relative luminance (WCAG 2.2)."""
    channels = [int(colour[at:at + 2], 16) / 255 for at in (1, 3, 5)]
    linear = [value / 12.92 if value <= 0.04045 else ((value + 0.055) / 1.055) ** 2.4 for value in channels]
    return sum(weight * value for weight, value in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


def contrast(one: str, other: str) -> float:
    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


def test_contrast_by_known_values():
    """Negative control: black on white is 21:1, yellow on white cannot be seen."""
    assert round(contrast("#000000", "#ffffff"), 2) == 21
    assert contrast("#f0e442", "#ffffff") < 3


@pytest.mark.parametrize("colour", sorted(USED))
def test_every_colour_is_seen_on_both_pages(colour):
    assert len(PAPERS) == 2
    assert all(contrast(colour, paper) >= 3 for paper in PAPERS), [contrast(colour, paper) for paper in PAPERS]


@pytest.mark.parametrize("name", ["ink", "soft", "link", "bad", "warn", "good"])
def test_text_is_read_on_both_pages(name):
    found = re.findall(rf"--{name}: (#\w{{6}})", CSS)
    panels = re.findall(r"--panel: (#\w{6})", CSS)
    for colour, paper, panel in zip(found, PAPERS, panels, strict=True):
        assert contrast(colour, paper) >= 4.5
        assert contrast(colour, panel) >= 4.5


def test_runs_are_told_apart():
    looks = [style.series_style(number) for number in range(36)]
    assert len({(colour, tuple(dash)) for colour, dash in looks}) == 36
    assert len({tuple(dash) for _, dash in looks[:6]}) == 6  # without colour


def test_checkpoints_are_told_apart_without_colour():
    assert len({shape for _, shape in style.KINDS.values()}) == len(style.KINDS)
