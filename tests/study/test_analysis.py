"""The rules that decide the study's questions: on made studies with known effects, and with none."""

from __future__ import annotations

import csv
import math
from dataclasses import replace

import numpy as np
import pytest
from made_study import GAINS, HARD, SCENE, made, without, written

from siri_megatron.report import compare
from siri_megatron.study import intervals
from siri_megatron.study.analysis import (
    ACCURACY,
    SECONDS,
    TOKENS,
    answers,
    arms,
    at_equal_tokens,
    beside,
    by_warm_start,
    column,
    compared,
    equal_tokens,
    hard_tiers,
)
from siri_megatron.study.data import Study


def scene(**changes: dict[str, float]) -> dict[str, dict[str, float]]:
    """The usual one with some arms changed."""
    return {arm: {**ends, **changes.get(arm.replace("-", "_"), {})} for arm, ends in SCENE.items()}


def verdicts(study: Study) -> dict[int, str]:
    return {answer.question: answer.decision.verdict for answer in answers(study, HARD)}


def parts(study: Study, question: int) -> dict[str, str]:
    answer = answers(study, HARD)[question - 1]
    return {part.name: decision.verdict for part, decision in zip(answer.parts, answer.decisions, strict=True)}


@pytest.fixture(scope="module")
def study() -> Study:
    return made()


def test_differences_are_those_of_plain_loops(tmp_path, study):
    """Every part, from the lines of the CSV."""
    with (written(tmp_path, study) / "evaluations.csv").open() as file:
        lines = list(csv.DictReader(file))

    def value(arm: str, seed: int, at: dict[str, str], key: str) -> float:
        for line in lines:
            if line["arm"] == arm and int(line["seed"]) == seed and all(line[name] == it for name, it in at.items()):
                return (float(line["acc:k=8"]) + float(line["acc:k=9"])) / 2 if key == "hard" else float(line[key])
        raise AssertionError((arm, seed, at))

    end = {"step": "72"}
    iterations = [{"tag": f"iter{cycle}-expanded"} for cycle in (1, 2, 3)]
    plain = {"1a": [("fixed", end), ("siri", end), "accuracy"], "1b": [("fixed", end), ("siri", end), "mean_tokens"],
             "2": [("monotone", end), ("siri", end), "hard"], "4": [("siri", end), ("closed-loop", end), "hard"],
             "3a": [("siri", iterations[0]), ("siri", iterations[1]), "accuracy"],
             "3b": [("siri", iterations[1]), ("siri", iterations[2]), "accuracy"],
             "3c": [("siri", iterations[0]), ("siri", iterations[1]), "mean_tokens"],
             "3d": [("siri", iterations[1]), ("siri", iterations[2]), "mean_tokens"]}
    found = {part.name: part for answer in answers(study, HARD) for part in answer.parts}
    assert list(found) == ["1a", "1b", "2", "3a", "3b", "3c", "3d", "4"]
    for name, (one, other, key) in plain.items():
        expected = [value(other[0], seed, other[1], key) - value(one[0], seed, one[1], key) for seed in range(1, 13)]
        assert found[name].comparison.differences == pytest.approx(expected), name
    assert {name: (part.above, part.bound) for name, part in found.items() if not part.above or part.bound} == {
        "1a": (True, -0.05), "1b": (False, 0.0), "3c": (False, 0.0), "3d": (False, 0.0)}


def test_known_effects_are_shown():
    study = made(scene=scene(closed_loop={"hard": 0.80}))
    assert verdicts(study) == dict.fromkeys((1, 2, 3, 4), "shown")


def test_no_effect_is_not_shown():
    """Negative control: four arms alike, and no gain by cycles."""
    study = made(scene=dict.fromkeys(SCENE, SCENE["fixed"]), gains={"accuracy": (0, 0), "tokens": (0, 0)}, draw=7)
    assert verdicts(study) == dict.fromkeys((1, 2, 3, 4), "not shown")
    assert parts(study, 1)["1a"] == "shown"  # equal accuracy is not inferior


def test_the_opposite():
    turned = scene(siri={"accuracy": 0.70, "tokens": 60, "hard": 0.2}, closed_loop={"hard": 0.1})
    back = {"accuracy": (0.05, -0.10), "tokens": (-6.0, 8.0)}
    study = made(scene=turned, gains=back)
    assert verdicts(study) == dict.fromkeys((1, 2, 3, 4), "the opposite")
    assert parts(study, 1) == {"1a": "the opposite", "1b": "the opposite"}
    assert parts(study, 3) == {"3a": "shown", "3b": "the opposite", "3c": "shown", "3d": "the opposite"}


@pytest.mark.parametrize(("less", "verdict"), [(0.0, "shown"), (0.02, "shown"), (0.05, "not shown"),
                                               (0.12, "the opposite")])
def test_margin(less, verdict):
    """Inferior by less than the margin: shown not to be; by the margin: not shown; by more: the opposite."""
    study = made(scene=scene(siri={"accuracy": SCENE["fixed"]["accuracy"] - less}), draw=5)
    assert parts(study, 1) == {"1a": verdict, "1b": "shown"}


def test_a_question_needs_all_its_parts():
    study = made(scene=scene(siri={"tokens": SCENE["fixed"]["tokens"]}), draw=1)
    assert parts(study, 1)["1a"] == "shown"
    assert verdicts(study)[1] == "not shown"


def test_corrections_by_hand(study):
    """p of a question: the largest of its parts; Holm over four questions, and over the parts of each."""
    noisy = made(noise=0.08, draw=3)
    found = answers(noisy, HARD)
    whole = [max(part.p() for part in answer.parts) for answer in found]
    assert [answer.decision.p for answer in found] == whole
    order = sorted(range(4), key=lambda one: whole[one])
    corrected = [max(min(1, (4 - rank) * whole[order[rank]]) for rank in range(place + 1)) for place in range(4)]
    assert [found[one].decision.corrected for one in order] == pytest.approx(corrected)
    third = found[2]
    smallest = min(part.p() for part in third.parts)
    assert min(decision.corrected for decision in third.decisions) == pytest.approx(min(1, 4 * smallest))


def test_paired(study):
    """A seed that one arm lacks is in no difference of the two."""
    torn = without(study, lambda row: (row["arm"], row["seed"]) != ("fixed", 4))
    assert arms(torn, "fixed", "siri", ACCURACY).seeds == [1, 2, 3, *range(5, 13)]
    assert arms(torn, "monotone", "siri", ACCURACY).seeds == list(range(1, 13))


def test_pairs_matter(study):
    """Negative control: what the arms of a seed share varies five times as much as a run, and would hide the effect."""
    found = arms(study, "siri", "closed-loop", hard_tiers(HARD))
    shuffled = dict(zip(found.others, np.roll(list(found.others.values()), 5), strict=True))
    assert replace(found, others=shuffled).difference.sd > 2 * found.difference.sd


def changed(study: Study, where, **values) -> Study:
    return Study([{**row, **values} if where(row) else row for row in study.evaluations], study.steps)


def test_at_the_end(study):
    before = answers(study, HARD)[1]
    learnt = {"acc:k=8": 1.0, "acc:k=9": 1.0}
    earlier = changed(study, lambda row: row["arm"] == "monotone" and row["step"] == 60, **learnt)
    assert answers(earlier, HARD)[1].decision == before.decision
    last = changed(study, lambda row: row["arm"] == "monotone" and row["step"] == 72, **learnt)
    assert answers(last, HARD)[1].decision.verdict == "the opposite"  # negative control


def test_beside(study):
    """Seconds, tight budgets and what was sampled decide nothing."""
    other = changed(study, lambda row: row["arm"] == "siri", train_seconds=1e6, sampled_tokens=9e9, **{"acc@32": 0.0})
    assert [answer.decision for answer in answers(other, HARD)] == [
        answer.decision for answer in answers(study, HARD)]
    first = {one.measure.name: one for one in beside(other, 1, HARD)}
    assert first["training seconds"].difference.value > 9e5
    assert first["accuracy@32"].difference.value < -0.3
    assert "accuracy@128" not in first  # that is the accuracy itself


def test_no_decision():
    without_loop = without(made(), lambda row: row["arm"] != "closed-loop")
    assert verdicts(without_loop)[4] == "no decision"
    assert verdicts(without_loop)[2] == "shown"
    assert set(verdicts(made(seeds=(1, 2, 3, 4))).values()) == {"no decision"}
    one_cycle = without(made(), lambda row: row.get("tag") in (None, "start", "iter1-expanded") or row["arm"] != "siri"
                        or row["step"] == 72)
    assert verdicts(changed(one_cycle, lambda row: row["arm"] == "siri" and row["step"] == 72,
                            tag="end"))[3] == "no decision"


def null(draw: int) -> Study:
    """Nothing holds, each question in the way that makes a false alarm likeliest: all of its parts but one are true."""
    same = {"accuracy": 0.7, "tokens": 48.0, "hard": 0.5}
    return made(scene={"fixed": {**same, "accuracy": 0.75, "tokens": 80}, "siri": same, "monotone": same,
                       "closed-loop": same}, gains={"accuracy": (0.2, 0.0), "tokens": (-20.0, -20.0)}, draw=draw,
                steps=False)


def test_family_wise(monkeypatch):
    """Of studies in which no claim is true, 2.5% or less call a question shown; without correction 10% would."""
    for module in (compare, intervals):
        monkeypatch.setattr(module, "RESAMPLES", 500)
    corrected = plain = 0
    for draw in range(200):
        found = answers(null(draw), HARD)
        corrected += any(answer.decision.verdict == "shown" for answer in found)
        plain += any(answer.decision.p < 0.025 for answer in found)
    assert corrected / 200 <= 0.025 + 3 * math.sqrt(0.025 * 0.975 / 200)
    assert plain / 200 > 0.06  # negative control: the simulation can tell


def test_equal_tokens_by_plain_loops(study):
    below, above = (at_equal_tokens(study, "fixed", "siri", ACCURACY, above=side) for side in (False, True))
    for seed in range(1, 13):
        rows = [row for row in study.evaluations if (row["arm"], row["seed"]) == ("fixed", seed)]
        end = next(row for row in study.evaluations if (row["arm"], row["seed"], row["step"]) == ("siri", seed, 72))
        under = over = None
        for row in rows:
            if row["sampled_tokens"] <= end["sampled_tokens"]:
                under = row
            elif over is None:
                over = row
        assert over["step"] - under["step"] == 12
        assert below.ones[seed] == under["accuracy"]
        assert above.ones[seed] == over["accuracy"]
        assert below.others[seed] == above.others[seed] == end["accuracy"]
    assert [one.measure.name for one in equal_tokens(study)] == ["accuracy"] * 2 + ["tokens per answer"] * 2


def test_hard_tiers_need_every_tier():
    row = {"acc:k=8": 0.4, "acc:k=9": 0.6, "acc:k=10": None}
    assert hard_tiers(("k=8", "k=9")).of(row) == 0.5
    assert hard_tiers(("k=9", "k=10")).of(row) is None
    assert hard_tiers(("k=11",)).of(row) is None
    assert hard_tiers(()).of(row) is None


def test_ratios_are_of_amounts(study):
    assert arms(study, "fixed", "siri", ACCURACY).ratio is None
    found = arms(study, "fixed", "siri", SECONDS)
    logs = [math.log(found.others[seed] / found.ones[seed]) for seed in found.seeds]
    assert math.isclose(found.ratio.value, math.exp(sum(logs) / len(logs)))


def test_unknown_values_make_no_pair():
    ones, others = {1: {"x": 1.0}, 2: {"x": None}, 3: {"x": 2.0}}, {1: {"x": 2.0}, 2: {"x": 5.0}, 4: {"x": 1.0}}
    assert compared("", column("x", "x", "tokens"), ones, others).differences == [1.0]


def test_by_warm_start():
    study = made(warm_starts=3)
    comparison = arms(study, "fixed", "siri", TOKENS)
    found = by_warm_start(study, comparison)
    assert list(found) == [1, 2, 3]
    assert found[2] == pytest.approx(sum(comparison.differences[4:8]) / 4)
    assert by_warm_start(Study([{key: value for key, value in row.items() if key != "warm"} for row in
                                study.evaluations], study.steps), comparison) == {}


def test_gains_of_the_made_study(study):
    """The made data have the effects that the tests above rely on."""
    end, before = study.tagged("siri", "iter3-expanded"), study.tagged("siri", "iter2-expanded")
    mean = np.mean([end[seed]["accuracy"] - before[seed]["accuracy"] for seed in end])
    assert abs(mean - GAINS["accuracy"][1]) < 0.02
