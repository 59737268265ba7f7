"""Whole runs: what adds up, and what moves which way."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from estimate_cases import cpu_setup, gpu_setup
from hypothesis import given, settings
from hypothesis import strategies as st

from siri_megatron.batching.lengths import capacity_at
from siri_megatron.budget.controller import PhaseController
from siri_megatron.estimate.document import document
from siri_megatron.estimate.lengths import lognormal
from siri_megatron.estimate.run import chosen_caps, commit_s, estimate, gpu_hours, nominal
from siri_megatron.estimate.setup import Setup
from siri_megatron.estimate.step import at_cap, generation, planned, sampled_rows

SECONDS = ("generation_s", "verification_s", "training_s", "push_s", "overhead_s")


@pytest.mark.parametrize("setup", [cpu_setup(), cpu_setup(learner={"pp": 2}, batching={
    "mode": "bucketed", "tokens_per_micro_batch": 512}), gpu_setup()], ids=["cpu", "bucketed", "gpu"])
def test_phases_add_up(setup: Setup) -> None:
    run = estimate(setup)
    assert run.seconds == pytest.approx(run.start_s + sum(phase.seconds for phase in run.phases))
    assert sum(run.cycles.values()) == pytest.approx(run.seconds - run.start_s)
    assert run.gpu_hours == pytest.approx(sum(phase.gpu_hours for phase in run.phases) + gpu_hours(setup, run.start_s))
    for phase in run.phases:
        assert phase.seconds == pytest.approx(
            sum(getattr(phase, name) for name in (*SECONDS, "commit_s", "export_s", "evaluation_s")))


def test_every_step_counts() -> None:
    setup = cpu_setup(budget={"hold_steps": 3, "compression_steps": 4})
    rows = PhaseController(setup.config.budget).table()
    run = estimate(setup)
    assert [(phase.tag, phase.first_step, phase.last_step, phase.mean_cap) for phase in run.phases] == [
        (row.tag, row.first_step, row.last_step, pytest.approx(row.mean_cap)) for row in rows]
    assert sum(phase.steps for phase in run.phases) == setup.config.budget.steps


def test_as_step_by_step() -> None:
    """Phases out of a few caps are nearly those that an estimate of each step gives."""
    setup = cpu_setup(budget={"l_min": 24, "l_max": 128, "cycle_steps": 60, "cycles": 1})
    controller = PhaseController(setup.config.budget)
    each = [at_cap(setup, controller.budget(step).cap) for step in range(60)]
    run = estimate(setup)
    assert len(run.points) == 9
    for name in (*SECONDS, "step_s", "tokens"):
        found = sum(getattr(phase, name) for phase in run.phases)
        assert found == pytest.approx(sum(getattr(step, name) for step in each), rel=0.02)


def test_commits() -> None:
    """Every 4 steps and at phase ends: 12-step phases in two halves of 6 commit at 4, 6 and 8, 12."""
    run = estimate(cpu_setup())
    one = commit_s(run.setup)
    assert [round(phase.commit_s / one) for phase in run.phases] == [2, 2, 2, 2]


@pytest.mark.parametrize("cap", [32, 90, 128])
def test_the_real_plan(cap: int) -> None:
    setup = cpu_setup(learner={"pp": 2, "dp": 2})
    rows, found = sampled_rows(setup, cap), at_cap(setup, cap)
    plan = planned(setup, rows, cap)
    assert (found.micro_batches, found.fill, found.capacity) == (
        len(plan.optimizer_steps[0].ranks[0]) * len(plan.optimizer_steps), plan.stats()["fill"],
        capacity_at(cap, tokens_per_micro_batch=512, l_max=128, max_prompt=32, micro_bytes=setup.micro_bytes))
    assert found.tokens == rows.response.sum()


@given(st.integers(16, 127), st.integers(1, 60))
@settings(max_examples=25, deadline=None)
def test_more_tokens_never_faster(cap: int, more: int) -> None:
    setup = cpu_setup(learner={"pp": 2})
    low, high = at_cap(setup, cap), at_cap(setup, min(128, cap + more))
    assert high.generation_s >= low.generation_s
    assert high.training_s >= low.training_s * 0.999
    longer = replace(setup, lengths=lognormal(90, 0.9, prompt=16))
    assert at_cap(longer, cap).generation_s >= low.generation_s


@given(st.sampled_from([1, 2]), st.sampled_from([2, 4]))
@settings(max_examples=4, deadline=None)
def test_more_engines_never_slower(count: int, times: int) -> None:
    few, many = (cpu_setup(engines={"count": number}, cores=64) for number in (count, count * times))
    assert at_cap(many, 128).generation_s <= at_cap(few, 128).generation_s


def test_signal_is_the_share_that_was_asked_for() -> None:
    setup = replace(cpu_setup(rollout={"prompts_per_step": 40, "samples_per_prompt": 4}), kept=((1, 0.7),))
    plan = planned(setup, sampled_rows(setup, 128), 128)
    assert plan.dropped_groups == 12
    everything = replace(setup, config=setup.config.model_copy(
        update={"algorithm": setup.config.algorithm.model_copy(update={"drop_uniform_groups": False})}))
    assert planned(everything, sampled_rows(everything, 128), 128).dropped_groups == 0


def test_prompts_are_read_once_a_group_unless_reproducible() -> None:
    setup = cpu_setup()
    again = cpu_setup(reproducible=True)
    counts = [generation(one, sampled_rows(one, 128)).prompt_tokens for one in (setup, again)]
    assert counts[1] == 4 * counts[0]


def test_lag_overlaps_the_sides() -> None:
    setup = cpu_setup()
    rollout = setup.config.rollout.model_copy(update={"lag": 1})
    ahead = replace(setup, config=setup.config.model_copy(update={"rollout": rollout}))
    one, other = at_cap(setup, 128), at_cap(ahead, 128)
    beside = one.push_s + one.overhead_s
    assert one.step_s == pytest.approx(one.generation_s + one.verification_s + one.training_s + beside)
    assert other.step_s == pytest.approx(max(one.generation_s + one.verification_s, one.training_s) + beside)


def test_closed_loop_is_estimated_as_its_cosine() -> None:
    closed = cpu_setup(budget={"schedule": "closed", "cycle_steps": 16})
    cosine = nominal(closed.config.budget)
    assert (cosine.schedule, cosine.steps) == ("cosine", 32)
    assert len(estimate(closed).phases) == 4


@given(st.lists(st.integers(1, 20_000), min_size=1, max_size=60), st.integers(2, 12))
def test_chosen_caps_hold_both_ends(caps: list[int], most: int) -> None:
    found = chosen_caps(caps, most)
    assert (found[0], found[-1], len(found) <= most) == (min(caps), max(caps), True)
    assert found == sorted(set(found))


def test_bottleneck_moves_with_the_cap() -> None:
    """A decode round has a fixed cost, so long caps wait for engines; with few rounds the learners are slower."""
    setup = gpu_setup(budget={"l_min": 64, "l_max": 16384}, learner={"dp": 1})
    run = estimate(setup)
    assert (run.points[0].step.bottleneck, run.points[-1].step.bottleneck) == ("training", "generation")
    assert len(run.turns_at) == 1
    assert {phase.bottleneck for phase in run.phases} == {"generation, then training", "training, then generation"}


def test_document_is_whole_and_json() -> None:
    run = estimate(gpu_setup())
    found = json.loads(json.dumps(document(run)))
    assert set(found) == {"format", "name", "model", "machine", "layout", "engines", "lengths", "modelled", "caps",
                          "phases", "cycles", "run", "misfits"}
    assert found["run"]["steps"] == 1920 == sum(phase["steps"] for phase in found["phases"])
    assert found["run"]["gpu_hours"] == pytest.approx(8 * found["run"]["seconds"] / 3600)
    assert found["modelled"] == {"seconds": True, "memory": True, "lengths": True}
    cap = found["caps"][-1]
    assert cap["memory"]["learner"]["total"] > cap["memory"]["learner"]["parameters"] > 1e9
    assert np.isfinite([value for value in cap.values() if isinstance(value, float)]).all()
