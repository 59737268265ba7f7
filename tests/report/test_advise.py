"""Advice in words: the invariants of report.advise, and for each rule a run that gives rise to it."""

from __future__ import annotations

import random
import re
from pathlib import Path

import pytest
from report_runs import evaluation, record

from siri_megatron.report.advise import LEVELS, RULES, advise
from siri_megatron.report.read import RunData, known


def run(records=(), **parts) -> RunData:
    return RunData("made", Path("made"), records=[known(one) for one in records], **parts)


def healthy(steps: int = 40, **changes):
    return [record(step, steps=steps, **changes) for step in range(steps)]


def changed_at(step: int, **changes):
    return [one | (changes if one["step"] == step else {}) for one in healthy()]


def test_silent_when_healthy():
    ended = {"status": "success", "reason": ""}
    evaluations = [evaluation("start", 0.3, 1200), evaluation("iter1-expanded", 0.7, 700)]
    assert advise(run(healthy(200), result=ended, evaluations=evaluations)) == []


def test_unknown_is_silent():
    assert advise(run()) == []
    assert advise(run([{"step": step} for step in range(50)])) == []
    nothing = [dict.fromkeys(one) | {"step": one["step"], "optimizer_steps": None} for one in healthy()]
    assert advise(run(nothing)) == []


CASES = {
    "97% truncated at step 12: cap too short": run(changed_at(12, truncated=0.97)),
    "100% of the groups equal at step 3: no signal": run(changed_at(3, uniform_groups=1.0, unfilled=None)),
    "25% of the groups missing at step 4": run(changed_at(4, unfilled=0.25)),
    "no verdict on 30% of the samples at step 9": run(changed_at(9, failed_share=0.3)),
    "mismatch of 0.300 nats a token at step 5": run(changed_at(5, mismatch_mean_abs=0.3, staleness_mean=None)),
    "effective sample size 20% at step 5": run(changed_at(5, ess=0.2)),
    "no finite gradient at step 7": run(changed_at(7, grad_norm=float("nan"))),
    "gradient norm 50 at step 7": run(changed_at(7, grad_norm=50.0)),
    "80% truncated on average in 1 compression": run(healthy(truncated=0.8)),
    "70% of the groups gave no gradient": run(healthy(uniform_groups=0.7)),
    "entropy fell from": run([*healthy(20), *(one | {"step": 20 + one["step"], "entropy": 0.01}
                                              for one in healthy(20))]),
    "50% of the tokens clipped": run(healthy(clip_fraction=0.5)),
    "engines were lost 2 times": run(events=[{"ts": 0, "kind": "engine", "after": "dead", "message": "engine-0"}] * 2),
    "1 checkpoints could not be written": run(events=[{"ts": 0, "kind": "commit_failed", "message": "disk full"}]),
    "3 weight pushes were repeated": run(events=[{"ts": 0, "kind": "push_repeated"}] * 3),
    "59% of the steps' time was neither": run(healthy(push_s=100.0)),
    "40% of what the learner computes is padding": run(healthy(fill=0.6)),
    "the heaviest rank has 1.80 times": run(healthy(imbalance=1.8)),
    "100 steps after step 100 ran micro-batch shapes": run(healthy(200, new_shapes=1),
                                                           config={"batching": {"mode": "bucketed"}}),
    "accuracy fell from": run(evaluations=[evaluation("start", 0.9, 100), evaluation("iter1-expanded", 0.1, 90)]),
    "1 tiers were lost: hard": run(evaluations=[
        evaluation("start", 0.5, 100), evaluation("iter1-expanded", 0.6, 90, tiers={"hard": {
            "accuracy": 0.0, "accuracy_ci": [0.0, 0.1], "mean_tokens": 9, "truncated": 0, "problems": 9}})]),
    "the run failed after 40 steps": run(healthy(), result={"status": "failed", "reason": "engine-0: killed"}),
    "the run was interrupted after 40 steps": run(healthy(), result={"status": "interrupted", "reason": "SIGINT"}),
}


@pytest.mark.parametrize("title", CASES)
def test_each_rule_speaks_of_its_case_alone(title):
    assert [advice.title for advice in advise(CASES[title]) if advice.title.startswith(title)]
    assert len(advise(CASES[title])) == 1


def test_every_rule_has_a_case():
    """Negative control of the cases: each rule speaks in one of them."""
    silent = [rule.__name__ for rule in RULES if not any(rule(case) for case in CASES.values())]
    assert silent == []


def test_one_a_rule():
    steps = [one | {"truncated": 0.96 + one["step"] / 1000} for one in healthy()]
    advice, = (one for one in advise(run(steps)) if "truncated" in one.title)
    assert advice.title == "100% truncated at step 39: cap too short (and 39 more steps)"


def test_numbers_named():
    for case in CASES.values():
        assert all(re.search(r"\d", advice.title) for advice in advise(case))


def test_worst_first():
    noise = random.Random(0)
    keys = ("truncated", "uniform_groups", "failed_share", "mismatch_mean_abs", "clip_fraction", "imbalance")
    for _ in range(50):
        spoiled = healthy(**{key: noise.random() for key in noise.sample(keys, 3)})
        levels = [LEVELS.index(advice.level) for advice in advise(run(spoiled))]
        assert levels == sorted(levels)


def no_signal(steps: int, **changes):
    flat = {"uniform_groups": 1.0, "unfilled": None} | changes
    (said,) = advise(run([one | (flat if one["step"] < steps else {}) for one in healthy()]))
    return said


def test_no_signal_says_whether_problems_are_easy_or_hard_or_cut():
    """Where a tight cap makes every group all wrong, it is the cap that is to be moved, not the problems."""
    easy = no_signal(10, all_right_groups=0.9, all_wrong_groups=0.1)
    hard = no_signal(10, all_right_groups=0.1, all_wrong_groups=0.9)
    cut = no_signal(10, all_right_groups=0.1, all_wrong_groups=0.9, truncated=0.8)
    assert ("too easy" in easy.text, "too hard" in hard.text, "too short" in cut.text) == (True, True, True)
    assert ("problems" in cut.text, "80% of the answers were cut" in cut.text) == (False, True)
    assert (easy.level, hard.level, cut.level) == ("warning", "problem", "problem")
    assert no_signal(2, all_wrong_groups=0.9).level == "warning"


def test_steps_without_an_update_are_no_collapse():
    """Runs of before wrote an entropy of 0 where nothing was trained on."""
    idle = {"optimizer_steps": 0, "entropy": 0.0, "grad_norm": 0.0, "uniform_groups": 0.8, "fill": 0.0}
    assert not any("entropy" in said.title for said in advise(run([*healthy(20), *(
        one | {"step": 20 + one["step"]} | (idle if one["step"] > 3 else {}) for one in healthy(20))])))
    assert known(record(0, steps=1) | idle)["entropy"] is None
