"""What the pictures show, against plain means."""

from __future__ import annotations

import math

import numpy as np
import pytest
from made_study import FOUR, TIERS, made

from siri_megatron.study.curves import aligned, held_out, tiers, training
from siri_megatron.study.data import Study


@pytest.fixture(scope="module")
def study() -> Study:
    return made((1, 2, 3, 4, 5, 6))


def test_held_out_is_the_mean_over_seeds(study):
    rows = {(row["arm"], row["step"]): row for row in held_out(study, FOUR)}
    assert len(rows) == 4 * 7
    values = [row["accuracy"] for row in study.evaluations if (row["arm"], row["step"]) == ("siri", 36)]
    found = rows["siri", 36]
    assert math.isclose(found["accuracy"], sum(values) / 6)
    assert math.isclose(found["accuracy_high"] - found["accuracy"], float(np.std(values, ddof=1)))
    assert math.isclose(found["accuracy_ci_high"] - found["accuracy"],
                        2.5706 * float(np.std(values, ddof=1)) / math.sqrt(6), rel_tol=1e-4)
    assert [row["step"] for row in rows.values() if row["end"]] == [72] * 4


def test_checkpoints_have_their_names(study):
    named = {row["name"]: (row["arm"], row["step"]) for row in held_out(study, FOUR) if row["name"]}
    assert named == {"start": ("siri", 0), "SIRI-low": ("siri", 60), "SIRI-high": ("siri", 72)}


def test_arms_with_steps_of_their_own_lie_between_evaluations(study):
    """Each seed of the closed loop is evaluated elsewhere; its curve has the steps of the others."""
    moved = {step: {seed: step + (seed % 3) - 1 for seed in range(1, 7)} for step in range(12, 72, 12)}
    shifted = Study([{**row, "step": moved[row["step"]][row["seed"]]} if row["arm"] == "closed-loop"
                     and row["step"] in moved else row for row in study.evaluations], study.steps)
    rows = [row for row in held_out(shifted, FOUR) if row["arm"] == "closed-loop"]
    assert [row["step"] for row in rows] == list(range(0, 73, 12))
    plain = []
    for seed in range(1, 7):
        own = [row for row in shifted.of("closed-loop") if row["seed"] == seed]
        plain.append(np.interp(24, [row["step"] for row in own], [row["mean_tokens"] for row in own]))
    assert math.isclose(rows[2]["tokens"], float(np.mean(plain)))
    assert aligned(shifted, "siri") == shifted.of("siri")  # the others are as they were measured
    assert rows[-1]["accuracy"] == held_out(study, FOUR)[-1]["accuracy"]  # and so is the end


def test_a_run_cut_short_is_drawn_as_far_as_it_went(study):
    cut = Study([row for row in study.evaluations if row["arm"] != "siri" or row["seed"] != 2 or row["step"] < 48],
                study.steps)
    rows = {row["step"]: row for row in held_out(cut, ["siri"])}
    assert sorted(rows) == list(range(0, 73, 12))
    of_five = [row["accuracy"] for row in cut.of("siri") if row["step"] == 72]
    assert len(of_five) == 5
    assert math.isclose(rows[72]["accuracy"], sum(of_five) / 5)


def test_bands_stay_within_the_seeds_and_intervals_of_shares_within_0_and_1():
    wild = made((1, 2, 3, 4, 5), noise=0.5)
    rows = held_out(wild, FOUR)
    for row in rows:
        values = [one["mean_tokens"] for one in wild.at_step(row["arm"], row["step"]).values()]
        assert min(values) <= row["tokens_low"] <= row["tokens"] <= row["tokens_high"] <= max(values)
        assert 0 <= row["accuracy_ci_low"] <= row["accuracy_ci_high"] <= 1
    assert max(row["tokens_ci_high"] for row in rows) > 1  # tokens are no shares
    assert len({row["cap_high"] for row in training(wild, ["fixed"])}) == 1


def test_few_seeds_have_their_range_for_an_interval():
    few = made((1, 2, 3))
    found = next(row for row in held_out(few, ["siri"]) if row["end"])
    values = [row["accuracy"] for row in few.end("siri").values()]
    assert (found["accuracy_ci_low"], found["accuracy_ci_high"]) == (min(values), max(values))


def test_tiers_are_those_of_the_end(study):
    rows = tiers(study, FOUR)
    assert [(row["arm"], row["tier"]) for row in rows] == [(arm, tier) for arm in FOUR for tier in TIERS]
    ends = [row["acc:k=9"] for row in study.evaluations if (row["arm"], row["step"]) == ("monotone", 72)]
    found = next(row for row in rows if (row["arm"], row["tier"]) == ("monotone", "k=9"))
    assert math.isclose(found["accuracy"], sum(ends) / 6)
    assert found["low"] < found["accuracy"] < found["high"]


def test_unknown_values_are_left_out(study):
    holed = Study([{**row, "acc:k=9": None} if row["arm"] == "siri" else row for row in study.evaluations], study.steps)
    found = next(row for row in tiers(holed, FOUR) if (row["arm"], row["tier"]) == ("siri", "k=9"))
    assert found["accuracy"] is None
    assert found["low"] is None
