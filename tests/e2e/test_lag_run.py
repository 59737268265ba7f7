"""A real run whose engines work ahead of its learners: tokens of several weights, and a ledger that repeats the run."""

from __future__ import annotations

import pytest
from real_run import SMALL, RealRun, command, same_weights, siri

from siri_megatron.ledger.read import open_step
from siri_megatron.observe import jsonl
from siri_megatron.paths import RunDir

pytestmark = [pytest.mark.engine, pytest.mark.soak]

LAG = 1
AHEAD = (*SMALL, f"rollout.lag={LAG}", "reproducible=false", "algorithm.old_logprobs=decoupled",
         "algorithm.correction=tis", "budget.prompt_caps.rule=da_dler", "evaluation.at_phase_ends=false",
         "evaluation.at_start=false")


@pytest.fixture(scope="module")
def ahead(runs) -> RealRun:
    siri(*command("tiny.yaml", runs, "ahead", *AHEAD)[1:])
    return RealRun(RunDir(runs / "ahead"))


def test_staleness_is_bounded_and_there(ahead: RealRun):
    """A step's tokens are of its own weights, or of those before; the run was ahead, or this would show nothing."""
    assert ahead.result["status"] == "success"
    for step, record in enumerate(ahead.records):
        row, version, tokens = open_step(ahead.paths.ledger, step).spans
        assert {step - int(one) for one in version} <= set(range(LAG + 1))
        assert record["staleness_max"] <= LAG
        assert record["staleness_mean"] == pytest.approx(
            sum((step - int(one)) * count for one, count in zip(version, tokens, strict=True)) / tokens.sum())
        assert len(set(row.tolist())) == record["samples"]
    assert ahead.records[0]["staleness_max"] == 0
    assert all(record["stale_tokens"] > 0 for record in ahead.records[1:])


def test_a_group_has_the_cap_of_the_step_that_trains_on_it(ahead: RealRun):
    assert [record["cap"] for record in ahead.records] == [88, 48, 88, 128]
    for step, record in enumerate(ahead.records):
        rows = open_step(ahead.paths.ledger, step)
        assert rows.budget.cap == record["cap"]
        assert (rows.response_length <= rows.cap).all()


def test_replay_of_its_ledger_ends_with_the_same_weights(ahead: RealRun, runs):
    """When a push came depends on the clock; what was trained on does not, once it lies in the ledger."""
    siri("train", str(ahead.paths.config), "--replay", str(ahead.paths.root), "name=ahead-replayed")
    replayed = RealRun(RunDir(runs / "ahead-replayed"))
    for tag in ("iter1-compressed", "iter1-expanded"):
        assert same_weights(ahead.weights(tag), replayed.weights(tag))
    assert trained(ahead) == trained(replayed)
    assert not same_weights(ahead.weights("iter1-compressed"), ahead.weights("iter1-expanded"))  # negative control


def trained(run: RealRun) -> list[dict[str, object]]:
    return [{key: value for key, value in record.items() if key != "sampling_s"} for record in run.comparable()]


def test_every_push_met_requests_in_flight_or_none(ahead: RealRun):
    assert not [event for event in jsonl.read(ahead.paths.events) if event["kind"] in ("push_repeated", "stale")]


@pytest.mark.parametrize(("policy", "rollouts"), [("cut", "frozen"), ("drop", "drained")])
def test_caps_that_fall_and_evaluations_under_groups_in_flight(runs, policy: str, rollouts: str):
    """A whole run with either policy of each: every sample is there within its cap, and the ledger repeats the run."""
    name = f"ahead-{policy}"
    siri(*command("tiny.yaml", runs, name, *AHEAD[:-2], f"rollout.lowered_cap={policy}",
                  f"evaluation.rollouts={rollouts}")[1:])
    run = RealRun(RunDir(runs / name))
    assert run.result["status"] == "success"
    assert [record["cap"] for record in run.records] == [88, 48, 88, 128]
    assert run.records[0]["lowered_groups"] > 0, "step 1, with a cap of 48, was ordered while step 0 was in flight"
    assert [record["lowered_groups"] for record in run.records[1:]] == [0, 0, 0]
    for record in run.records:
        rows = open_step(run.paths.ledger, record["step"])
        assert len(set(zip(rows.group.tolist(), rows.sample.tolist(), strict=True))) == record["samples"] == len(rows)
        assert (rows.response_length <= rows.cap).all()
        assert record["staleness_max"] <= LAG
    versions = {tag: report["weight_version"] for tag, report in run.evaluations().items()}
    assert versions == {"start": "0", "iter1-compressed": "2", "iter1-expanded": "4"}
    siri("train", str(run.paths.config), "--replay", str(run.paths.root), f"name={name}-replayed")
    assert same_weights(run.weights(), RealRun(RunDir(runs / f"{name}-replayed")).weights())
