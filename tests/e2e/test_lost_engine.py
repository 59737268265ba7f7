"""THE test of the fleet: a run that loses engines ends with the weights of one that lost none, bit for bit."""

from __future__ import annotations

import pytest
from lost_engines import Loss, run_with_losses
from real_run import SMALL, RealRun, same_weights

from siri_megatron.ledger.read import open_step

pytestmark = pytest.mark.engine


@pytest.fixture(scope="module")
def lossy(runs) -> RealRun:
    return run_with_losses(runs, "lost-engine", [Loss("generation", after_steps=1, engine=1)],
                           (*SMALL, "engines.in_process=true"))


def test_an_engine_killed_in_mid_generation_changes_nothing(lossy: RealRun, resumed: RealRun):
    for tag in ("iter1-compressed", "iter1-expanded"):
        assert same_weights(lossy.weights(tag), resumed.weights(tag))
    assert lossy.comparable() == resumed.comparable()


def test_no_group_is_counted_twice(lossy: RealRun, resumed: RealRun):
    for step in range(4):
        mine, other = (open_step(run.paths.ledger, step) for run in (lossy, resumed))
        pairs = [(row.group, row.sample) for row in map(mine.rollout, range(len(mine)))]
        assert len(set(pairs)) == len(pairs) == len(other) == 64
