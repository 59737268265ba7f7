"""The invariants of `study/schedule.py`, with lanes that finish in any order."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from siri_megatron.study.plan import StudyPlan
from siri_megatron.study.schedule import Job, jobs, next_job


def plan(seeds: int, arms: int, warm: int) -> StudyPlan:
    starts = {"config": "w.yaml", "seeds": [90 + index for index in range(warm)]} if warm else {"path": "model"}
    return StudyPlan.model_validate({
        "name": "s", "kind": "exploratory", "config": "c.yaml", "warm_starts": starts,
        "seeds": [100 + index for index in range(seeds)], "arms": {f"arm{index}": {} for index in range(arms)}})


@st.composite
def plans(draw: st.DrawFn) -> StudyPlan:
    seeds = draw(st.integers(1, 7))
    return plan(seeds, draw(st.integers(1, 4)), draw(st.integers(0, min(3, seeds))))


def play(study: StudyPlan, lanes: int, turns: st.DataObject) -> list[tuple[int, Job]]:
    """Lanes take and finish jobs in any order; returns (lane, job) as given out. Fails if nobody can go on."""
    todo, done, out = jobs(study), set(), []
    working: dict[int, Job] = {}
    held: dict[int, int | None] = dict.fromkeys(range(lanes))
    while len(done) < len(todo):
        for lane in range(lanes):
            if lane not in working and (job := next_job(todo, done, set(working.values()), held[lane])):
                working[lane] = job
                out.append((lane, job))
                held[lane] = job.warm if job.arm else held[lane]
        assert working, "no lane has work, and the study is not done"
        lane = turns.draw(st.sampled_from(sorted(working)))
        done.add(working.pop(lane))
    return out


@given(plans(), st.integers(1, 3), st.data())
def test_each_once(study: StudyPlan, lanes: int, turns: st.DataObject) -> None:
    given_out = [job for _, job in play(study, lanes, turns)]
    runs = [(job.arm, job.seed) for job in given_out if job.arm]
    assert sorted(runs) == sorted((arm, seed) for arm in study.arms for seed in study.seeds)
    assert sorted(job.seed for job in given_out if not job.arm) == sorted(study.warm_starts.seeds)


@given(plans(), st.data())
def test_seeds_together(study: StudyPlan, turns: st.DataObject) -> None:
    seeds = [job.seed for _, job in play(study, 1, turns) if job.arm]
    assert seeds == [seed for seed in study.seeds for _ in study.arms]


@given(st.integers(1, 4))
def test_the_first_arm_goes_round(arms: int) -> None:
    runs = [job for job in jobs(plan(arms, arms, 0)) if job.arm]
    assert {job.arm for job in runs[::arms]} == {f"arm{index}" for index in range(arms)}


def test_warm_first() -> None:
    todo = jobs(plan(2, 2, 2))
    assert todo[0] == Job(90, 90)
    assert next_job(todo, set(), {todo[0]}, None) == Job(91, 91), "no run: its warm start is not done"
    assert next_job(todo, set(), {Job(90, 90), Job(91, 91)}, None) is None


def test_warm_engines_stay() -> None:
    todo = jobs(plan(4, 2, 2))
    made = {Job(90, 90), Job(91, 91)}
    job = next_job(todo, made, set(), 91)
    assert job is not None
    assert job.warm == 91
    rest = {job for job in todo if job.warm == 91}
    other = next_job(todo, made | rest, set(), 91)
    assert other is not None, "a lane whose warm start has no runs left takes another's"
    assert other.warm == 90


@pytest.mark.parametrize(("seeds", "warm", "dealt"), [(4, 2, [90, 90, 91, 91]), (3, 2, [90, 90, 91]), (2, 0, [0, 0])])
def test_seeds_are_dealt_out_to_warm_starts_in_blocks(seeds: int, warm: int, dealt: list[int]) -> None:
    study = plan(seeds, 1, warm)
    assert [study.warm_of(seed) for seed in study.seeds] == dealt
    assert isinstance(study.config, Path)
