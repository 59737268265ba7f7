"""Whole open-loop runs: the paper's, the neighbours', and the invariants of every one."""

from __future__ import annotations

import math
from itertools import pairwise

from budget_configs import SHAPES, config, open_loops, shaped
from hypothesis import given

from siri_megatron.budget.open_loop import open_loop
from siri_megatron.budget.schedule import SCHEDULES, round_cap
from siri_megatron.config import BudgetConfig


def caps_of(settings: BudgetConfig) -> list[int]:
    return [cap for plan in open_loop(settings) for cap in plan.caps]


@given(shaped(SHAPES))
def test_half_a_cycle_is_the_paper_s_formula(settings: BudgetConfig) -> None:
    """With the plain options a run is L(t), t = 1, 2, ..., bit for bit."""
    length = 2 * settings.compression
    plain = BudgetConfig(schedule=settings.schedule, l_min=settings.l_min, l_max=settings.l_max, cycle_steps=length,
                         cycles=2)
    formula = SCHEDULES[settings.schedule]
    assert caps_of(plain) == [round_cap(formula(t, length, plain.l_min, plain.l_max)) for t in range(1, 2 * length + 1)]


def test_a_short_compression_and_a_long_expansion_by_hand() -> None:
    """"Compress smoothly, expand long" (SIRI, ablation): the other way round is as easy."""
    settings = config(schedule="linear", l_min=10, l_max=50, cycle_steps=6, compression_steps=2, cycles=1)
    assert caps_of(settings) == [30, 10, 20, 30, 40, 50]


def test_warm_up_hold_belongs_to_the_first_compression() -> None:
    phases = open_loop(config(schedule="stair", l_min=8, l_max=16, cycle_steps=4, cycles=2, hold_steps=3))
    assert [plan.caps for plan in phases] == [(16, 16, 16, 8, 8), (16, 16), (8, 8), (16, 16)]
    assert config(hold_steps=3).steps == 3 + 3 * 24


def test_a_range_that_shrinks_has_no_jump() -> None:
    """L_max 50, then 30; L_min 10, then 2: the second compression starts from where the first expansion ended."""
    settings = config(schedule="linear", l_min=2, l_max=50, cycle_steps=8, cycles=3, ranges=((10, 50), (2, 30)))
    assert caps_of(settings) == [40, 30, 20, 10, 20, 30, 40, 50, 38, 26, 14, 2, 9, 16, 23, 30,
                                 23, 16, 9, 2, 9, 16, 23, 30]


def test_deepscaler_and_fastcurl_stages() -> None:
    deepscaler = ((1040, 8192), (480, 16384), (230, 24576))
    phases = open_loop(BudgetConfig(schedule="staged", l_min=8192, l_max=24576, stages=deepscaler))
    assert [(plan.tag, plan.phase, plan.cycle, len(plan.caps), set(plan.caps)) for plan in phases] == [
        ("stage1", "compression", 0, 1040, {8192}), ("stage2", "expansion", 0, 480, {16384}),
        ("stage3", "expansion", 0, 230, {24576})]
    fastcurl = ((2, 8), (2, 16), (2, 24), (1, 16), (1, 16))
    phases = open_loop(BudgetConfig(schedule="staged", l_min=8, l_max=24, stages=fastcurl))
    assert [(plan.phase, plan.cycle) for plan in phases] == [
        ("compression", 0), ("expansion", 0), ("expansion", 0), ("compression", 1), ("compression", 1)]


@given(shaped())
def test_bounded(settings: BudgetConfig) -> None:
    for plan in open_loop(settings):
        low, high = settings.range_of(plan.cycle)
        top = settings.range_of(max(plan.cycle - 1, 0))[1] if plan.phase == "compression" else high
        assert all(min(low, top) <= cap <= max(low, top) for cap in plan.caps)
        assert all(settings.l_min <= cap <= settings.l_max for cap in plan.caps)


@given(shaped(SHAPES))
def test_lowest_then_highest(settings: BudgetConfig) -> None:
    """The stair-cosine and the stair hold their ends; the others touch them in the last step."""
    for plan in open_loop(settings):
        assert plan.caps[-1] == settings.range_of(plan.cycle)[plan.phase == "expansion"]


@given(shaped())
def test_monotone_phases(settings: BudgetConfig) -> None:
    for plan in open_loop(settings):
        falls = plan.caps[0] >= plan.caps[-1]
        assert list(plan.caps) == sorted(plan.caps, reverse=falls)


@given(shaped(("cosine", "stair_cosine", "linear")))
def test_slope_limited(settings: BudgetConfig) -> None:
    steepest = {"cosine": math.pi / 2, "stair_cosine": math.pi, "linear": 1}[settings.schedule]
    before = settings.range_of(0)[1]
    for plan in open_loop(settings):
        steps = settings.compression if plan.phase == "compression" else settings.cycle_steps - settings.compression
        low, high = settings.range_of(plan.cycle)
        extent = abs((before if plan.phase == "compression" else high) - low)
        walk = (before, *plan.caps)
        assert all(abs(walk[s + 1] - walk[s]) <= steepest * extent / steps + 1 for s in range(len(plan.caps)))
        before = plan.caps[-1]


def test_slope_of_the_paper_s_run() -> None:
    """40.2 tokens a step at T = 640 (siri.md 1.4); the stair, as a control, jumps by all 8192."""
    def steepest(schedule: str) -> int:
        caps = caps_of(config(schedule=schedule, l_min=8192, l_max=16384, cycle_steps=640))
        return max(abs(b - a) for a, b in pairwise(caps))

    assert (steepest("cosine"), steepest("linear"), steepest("stair")) == (41, 26, 8192)


@given(open_loops)
def test_phases_tile_the_run(settings: BudgetConfig) -> None:
    phases = open_loop(settings)
    assert sum(len(plan.caps) for plan in phases) == settings.steps
    assert all(plan.caps for plan in phases)
    assert len({plan.tag for plan in phases}) == len(phases) == settings.phase_ends
    assert phases[0].phase == "compression"
    assert [plan.cycle for plan in phases] == sorted(plan.cycle for plan in phases)
