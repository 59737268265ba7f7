"""Dynamic sampling in a real run: every step trains on the asked number of groups, and its ledger trains the same.

The run is at the same time the one with length buckets, with tensor parallelism instead of the pipeline, and with an
engine in its server's process.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from real_run import IN_PROCESS, SMALL, RealRun, command, same_weights, siri

from siri_megatron.ledger.read import open_step
from siri_megatron.paths import RunDir
from siri_megatron.rollout.refill import Tally

pytestmark = pytest.mark.engine
PROMPTS, SAMPLES = 8, 2  # pairs, of which about half say twice the same: something is to be refilled


@pytest.fixture(scope="module")
def refilled(runs: Path) -> RealRun:
    siri(*command("tiny-bucketed.yaml", runs, "refilled", *SMALL, *IN_PROCESS, "budget.cycle_steps=2",
                  "learner.tp=2", "learner.pp=1", "rollout.max_refill=6", f"rollout.samples_per_prompt={SAMPLES}",
                  "evaluation.at_start=false", "evaluation.at_phase_ends=false")[1:])
    return RealRun(RunDir(runs / "refilled"))


def test_buckets_and_tensor_parallel(refilled: RealRun) -> None:
    trained = [record for record in refilled.records if record["optimizer_steps"]]
    assert trained
    assert all(record["mismatch_max_abs"] < 1e-4 for record in trained)
    assert all(record["shapes"] <= 3 * record["optimizer_steps"] * 4 for record in trained)


def test_every_step_trains_on_the_asked_number_of_groups(refilled: RealRun) -> None:
    assert refilled.result["status"] == "success"
    for record in refilled.records:
        rows = open_step(refilled.paths.ledger, record["step"])
        groups = len(np.unique(rows.group))
        assert groups == PROMPTS + record["refill_groups"]
        assert groups - record["dropped_groups"] == PROMPTS
        assert Tally.of(rows, "zero", 0.2) == Tally(groups, PROMPTS + record["surplus_groups"])
        assert record["unfilled"] == 0
        own = rows.below(PROMPTS)
        assert record["samples"] == len(own) == PROMPTS * SAMPLES
        assert record["accuracy"] == pytest.approx(float(np.mean(own.reward)))
        assert record["tokens"] == int(rows.response_length.sum())
    assert sum(record["refill_groups"] for record in refilled.records), "else nothing is tested"
    assert all(record["uniform_groups"] > 0 or not record["refill_groups"] for record in refilled.records[:1])


def test_replay_of_its_ledger_ends_with_the_same_weights(refilled: RealRun, runs: Path) -> None:
    siri("train", str(refilled.paths.config), "--replay", str(refilled.paths.root), "name=refilled-again")
    again = RealRun(RunDir(runs / "refilled-again"))
    for tag in ("iter1-compressed", "iter1-expanded"):
        assert same_weights(refilled.weights(tag), again.weights(tag))
    assert refilled.comparable() == again.comparable()
