"""A warm start that has learnt nothing, or everything, is refused by the first run that has it."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from siri_megatron.errors import DataError
from siri_megatron.files import write_json
from siri_megatron.paths import RunDir
from siri_megatron.study.lane import refuse_useless
from siri_megatron.study.plan import StudyPlan, load_plan
from siri_megatron.study.runner import run_study
from siri_megatron.study.schedule import Job, jobs

CONFIGS = Path("configs").resolve()
PLAN = StudyPlan.model_validate({
    "name": "s", "kind": "exploratory", "config": "run.yaml", "seeds": [1, 2, 3, 4], "arms": {"a": {}, "b": {}},
    "warm_starts": {"config": "warm.yaml", "seeds": [21, 22], "within": [0.3, 0.6]}})


def judged(place: Path, plan: StudyPlan, job: Job, accuracy: float) -> None:
    write_json(RunDir(place / job.name).evaluations / "start.json", {"accuracy": accuracy})
    refuse_useless(plan, place, job)


@pytest.mark.parametrize("accuracy", [0.0, 0.1, 0.299, 0.601, 1.0])
def test_of_no_use(tmp_path: Path, accuracy: float) -> None:
    """0.1: the warm start 23 of the study of the tiny task, docs/study/README.md."""
    with pytest.raises(DataError, match=f"warm start 21: {accuracy:.1%} right before training"):
        judged(tmp_path, PLAN, Job(1, 21, "a"), accuracy)


@pytest.mark.parametrize("accuracy", [0.3, 0.45, 0.6])
def test_of_use(tmp_path: Path, accuracy: float) -> None:
    judged(tmp_path, PLAN, Job(1, 21, "a"), accuracy)


def test_within(tmp_path: Path) -> None:
    """Judged once, by the first run that has it."""
    refused = []
    for job in (job for job in jobs(PLAN) if job.arm):
        try:
            judged(tmp_path, PLAN, job, 0.1)
        except DataError:
            refused.append(job)
    assert refused == [Job(1, 21, "a"), Job(3, 22, "a")]


def test_a_study_that_was_refused_is_refused_again(tmp_path: Path) -> None:
    """Its run is done, but it has not been judged fine."""
    path = tmp_path / "plan.yaml"
    path.write_text(yaml.safe_dump({
        "name": "s", "kind": "exploratory", "config": str(CONFIGS / "tiny.yaml"), "seeds": [1],
        "arms": {"a": {}, "b": {}},
        "warm_starts": {"path": str(CONFIGS / "models/tiny-digits"), "within": [0.3, 0.6]}}))
    place = tmp_path / "study"
    write_json(RunDir(place / "a-1").result, {"status": "success"})
    write_json(RunDir(place / "a-1").evaluations / "start.json", {"accuracy": 0.1})
    with pytest.raises(DataError, match=r"10\.0% right before training"):
        run_study(load_plan(path), place, [0], print)


def test_no_bounds_no_judgement(tmp_path: Path) -> None:
    warm = PLAN.warm_starts.model_copy(update={"within": None})
    judged(tmp_path, PLAN.model_copy(update={"warm_starts": warm}), Job(1, 21, "a"), 0.1)


def test_without_an_evaluation_it_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="nan% right"):
        refuse_useless(PLAN, tmp_path, Job(1, 21, "a"))
