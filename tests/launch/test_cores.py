"""Cores of engines and learners: shared in turn, apart with a lag."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from siri_megatron.config import RunConfig, validate
from siri_megatron.launch.cores import Cores, share_cores


def config(lag: int, engines: int = 2, **learner: Any) -> RunConfig:
    return validate({"name": "run", "model": {"path": str(Path("model"))}, "optimizer": {"lr": 1e-3},
                     "budget": {"l_min": 8, "l_max": 16, "cycle_steps": 2, "cycles": 1}, "rollout": {"lag": lag},
                     "engines": {"count": engines}, "learner": learner}, "test")


def test_in_turn_without_a_lag() -> None:
    assert share_cores(config(0, pp=2), (0, 1)) == Cores((0, 1), (0, 1))


@pytest.mark.parametrize(("lag", "engines", "world", "cores", "first_of_learners"), [
    (1, 1, 1, 2, 1), (1, 2, 2, 2, 1), (1, 2, 4, 4, 2), (3, 4, 8, 64, 56), (1, 4, 48, 64, 16), (1, 1, 1, 1, 0)])
def test_apart_with_a_lag(lag: int, engines: int, world: int, cores: int, first_of_learners: int) -> None:
    shared = share_cores(config(lag, engines, dp=world), range(cores))
    assert shared.learners == tuple(range(first_of_learners, cores))
    assert shared.engines == (tuple(range(first_of_learners)) or shared.learners)


@given(st.integers(1, 9), st.integers(1, 20), st.integers(1, 4), st.integers(2, 80))
def test_each_core_has_one_side_and_each_side_has_one(engines: int, world: int, threads: int, cores: int) -> None:
    shared = share_cores(config(1, engines, dp=world, threads=threads), range(cores))
    assert shared.engines + shared.learners == tuple(range(cores))
    assert shared.engines
    assert shared.learners
