"""The benchmark against TRL: both sides are counted alike, and have the same job."""

from __future__ import annotations

import sys
from itertools import count
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tools" / "bench"))
import trl as bench
from model import half_the_cap

from siri_megatron import config as configs

REPO = Path(__file__).resolve().parents[2]


def test_a_step_of_ranks_takes_as_long_as_the_slowest_and_has_the_tokens_of_all() -> None:
    one = [{"tokens": 10, "seconds": 1.0}, {"tokens": 20, "seconds": 4.0}]
    other = [{"tokens": 5, "seconds": 2.0}, {"tokens": 1, "seconds": 3.0}]
    assert bench.steps_of_ranks([one, other]) == [bench.Timed(15, 2.0), bench.Timed(21, 4.0)]
    with pytest.raises(ValueError, match="argument 2 is shorter"):
        bench.steps_of_ranks([one, other[:1]])


def test_ours_is_the_whole_step() -> None:
    record = {"tokens": 100, "step_s": 4.0, "generation_s": 1.0, "training_s": 2.0}
    assert bench.steps_of_metrics([record]) == [bench.Timed(100, 4.0)]


def test_the_figure_is_the_median_after_warm_up() -> None:
    steps = [bench.Timed(1000, 1.0), bench.Timed(10, 1.0), bench.Timed(30, 1.0), bench.Timed(20, 1.0)]
    assert bench.median_speed(steps) == 20
    with pytest.raises(ValueError, match="none is left"):
        bench.median_speed(steps[:1])


@pytest.mark.parametrize("cap", [128, 512])
def test_half_of_the_samples_ends_before_half_the_cap(cap: int) -> None:
    """Written out: a token is the stop one with probability 1 / vocabulary."""
    going_on, median = 1.0, 0
    for at in count(1):
        going_on *= 1 - 1 / half_the_cap(cap)
        median = median or (at if going_on <= 0.5 else 0)
        if at == cap:
            break
    assert median == pytest.approx(cap / 2, rel=0.05)
    assert going_on == pytest.approx(0.25, abs=0.01)


def test_both_sides_have_the_same_job() -> None:
    config = configs.load(REPO / bench.CONFIG, bench.overrides(128, 5, Path("model")))
    assert (config.budget.l_min, config.budget.l_max, config.budget.steps) == (128, 128, 6)
    assert config.algorithm.mini_batches == 1
    batch = config.rollout.prompts_per_step * config.rollout.samples_per_prompt
    for setting in bench.SETTINGS:
        assert setting.ranks * setting.threads == bench.CORES
        assert batch % (setting.ranks * setting.batch) == 0


def test_the_line_says_ratio_and_target() -> None:
    said = bench.line(512, 4100.0, 1000.0, bench.SETTINGS[1])
    assert "ratio 4.10 (target >= 4)" in said
    assert bench.SETTINGS[1].name in said
    assert "target" not in bench.line(64, 1.0, 1.0, bench.SETTINGS[0])
