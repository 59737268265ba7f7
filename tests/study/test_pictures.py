"""The pictures of a study: every arm is there, and told apart without colour."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree

import pytest
from made_study import FOUR, SCENE, made

from siri_megatron.report import style
from siri_megatron.study.data import Study
from siri_megatron.study.pictures import LOOKS, PICTURES, SUMMARY, look, spec, svg

ELEVEN = ("fixed", "siri", "stair", "stair-cosine", "mild", "staged-up", "dapo-overlong", "dler", "dot", "laser-d",
          "leash")


@pytest.fixture(scope="module")
def study() -> Study:
    return made((1, 2, 3, 4, 5))


def words(drawn: str) -> list[str]:
    return [element.text or "" for element in ElementTree.fromstring(drawn).iter() if element.tag.endswith("text")]


@pytest.mark.parametrize("picture", [*PICTURES, SUMMARY], ids=lambda picture: picture.name)
def test_every_picture_names_its_arms(study, picture):
    drawn = svg(spec(picture, study, FOUR))
    assert set(FOUR) <= set(words(drawn))
    assert style.PAPER in drawn  # its own ground: it is read on a dark page
    assert all(colour in drawn for colour, _, _ in LOOKS.values())


def test_a_picture_of_two_arms_names_two(study):
    """Negative control."""
    assert not {"monotone", "closed-loop"} & set(words(svg(spec(SUMMARY, study, ("fixed", "siri")))))


def test_siri_low_and_high_are_marked(study):
    pareto = next(picture for picture in PICTURES if picture.name == "pareto.svg")
    assert {"start", "SIRI-low", "SIRI-high"} <= set(words(svg(spec(pareto, study, FOUR))))


def test_equal_data_make_equal_pictures(study):
    assert svg(spec(SUMMARY, study, FOUR)) == svg(spec(SUMMARY, study, FOUR))


@pytest.mark.parametrize("names", [FOUR, ELEVEN])
def test_arms_are_told_apart(names):
    looks = look(names)
    assert len({(colour, tuple(dash)) for colour, dash, _ in looks}) == len(names)
    assert len({(colour, shape) for colour, _, shape in looks}) == len(names)


def test_the_four_arms_are_told_apart_without_colour():
    assert len({tuple(dash) for _, dash, _ in LOOKS.values()}) == len({shape for *_, shape in LOOKS.values()}) == 4


def test_eleven_arms_are_drawn():
    study = made((1, 2, 3), scene={name: SCENE.get(name, SCENE["siri"]) for name in ELEVEN})
    for picture in PICTURES:
        assert set(ELEVEN) <= set(words(svg(spec(picture, study, study.arms))))


def test_the_summary_fits_a_readme(study):
    root = ElementTree.fromstring(svg(spec(SUMMARY, study, FOUR)))
    assert float(root.attrib["width"]) < 800
    assert float(root.attrib["height"]) < 340
