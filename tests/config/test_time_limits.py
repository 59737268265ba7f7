"""Time-outs follow what is asked for: the cap, the refills, the budget of an evaluation."""

from __future__ import annotations

from typing import Any

import pytest

from siri_megatron.config import RunConfig, validate


def config(**rollout: Any) -> RunConfig:
    return validate({"name": "run", "model": {"path": "model"}, "optimizer": {"lr": 1e-3},
                     "budget": {"l_min": 512, "l_max": 1024, "cycle_steps": 2, "cycles": 1},
                     "evaluation": {"budgets": [512, 4096]}, "rollout": {"timeout_s": 600.0, **rollout}}, "test")


@pytest.mark.parametrize(("cap", "seconds"), [(1024, 600), (512, 450), (0, 300)])
def test_a_step(cap: int, seconds: float) -> None:
    assert config().collect_timeout_s(cap) == seconds
    assert config(max_refill=1.5).collect_timeout_s(cap) == 2.5 * seconds


def test_an_evaluation_takes_its_largest_budget() -> None:
    assert config().evaluation_timeout_s == 600 * (1 + 4) / 2
    assert config(max_refill=1.5).evaluation_timeout_s == 600 * (1 + 4) / 2
    given = config().evaluation.model_copy(update={"timeout_s": 7.0})
    assert config().model_copy(update={"evaluation": given}).evaluation_timeout_s == 7.0


def test_history_that_is_removed_too_early_is_refused() -> None:
    raw = config(max_refill=1.0, lag=1).model_dump()
    with pytest.raises(ValueError, match=r"keep_ledger=4 with rollout\.max_refill=1 and rollout\.lag=1.*keep_ledger=5"):
        RunConfig.model_validate({**raw, "checkpoint": {"keep_ledger": 4}})
    RunConfig.model_validate({**raw, "checkpoint": {"keep_ledger": 5}})
    RunConfig.model_validate({**config().model_dump(), "checkpoint": {"keep_ledger": 1}})


def test_a_push_trips_no_collective() -> None:
    """Ranks that share the model wait in the export's gathers for rank 0, which waits for an engine that hangs."""
    raw = config().model_dump()
    for cut in ("tp", "pp"):
        held = {**raw, "learner": {cut: 2, "collective_timeout_s": 120.0}, "push": {"timeout_s": 120.0}}
        with pytest.raises(ValueError, match=r"collective_timeout_s=120 is not above push\.timeout_s=120.*=132"):
            RunConfig.model_validate(held)
        RunConfig.model_validate(held | {"push": {"timeout_s": 119.0}})
        RunConfig.model_validate({**raw, "learner": {cut: 2}})
    RunConfig.model_validate({**raw, "learner": {"dp": 2, "collective_timeout_s": 5.0}})
