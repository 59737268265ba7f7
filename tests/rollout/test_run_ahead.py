"""A learner that trains while the collector is ahead: the real loop, collector process and push, on fake engines.

They are fast and choose when a push meets requests; tests/e2e/test_lag_run.py is the same with vLLM.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from engine_fleet import write_tiny_model
from fake_engine import run_config
from pushed_engine import PushedEngine
from ranks import Rank, Ranks
from test_service import collector

from siri_megatron.config import RunConfig
from siri_megatron.ledger.read import closed_steps, open_step
from siri_megatron.observe import jsonl
from siri_megatron.paths import RunDir
from siri_megatron.rollout.fleet import withdraw

LAG, STEPS, PROMPTS, SAMPLES = 2, 8, 4, 8
ROLLOUT = {"prompts_per_step": PROMPTS, "samples_per_prompt": SAMPLES, "budget_grid": [4, 8, 12], "timeout_s": 60.0}
BUDGET = {"schedule": "cosine", "l_min": 8, "l_max": 16, "cycle_steps": STEPS, "cycles": 1,
          "prompt_caps": {"rule": "da_dler", "floor": 4}}


@pytest.fixture(scope="module")
def learner() -> Iterator[Ranks]:
    """One learner process."""
    with Ranks(1) as pool:
        yield pool


CLOSED = BUDGET | {"schedule": "closed", "closed": {"window": 1, "dwell": 2, "longest_phase": 3, "slope": 3,
                                                    "delta": 0.5}}


def config_of(place: Path, name: str = "run", budget: dict[str, Any] = BUDGET, **rollout: Any) -> RunConfig:
    if not (place / "model").exists():
        write_tiny_model(place / "model")
    return run_config(place, name=name, reproducible=False, tensorboard=False, budget=budget,
                      rollout=ROLLOUT | {"lag": LAG} | rollout, optimizer={"lr": 1e-3},
                      checkpoint={"every_steps": 1, "keep": 1, "export_phase_ends": False},
                      data={"train_problems": 10, "max_prompt_tokens": 32},
                      evaluation={"problems": 6, "samples": 2, "budgets": [8, 16]})


def trained(rank: Rank, config: RunConfig, stop_at: int | None = None,
            replay: Path | None = None) -> tuple[int, dict[str, torch.Tensor]]:
    """Train to the end, or until a stop before step `stop_at`; returns the last commit and the weights."""
    from siri_megatron.assemble import assemble
    from siri_megatron.loop import train

    run = assemble(config, RunDir(config.run_dir), rank=rank.rank, replay=replay)
    collect = run.source.collect

    def stopping(budget: Any, stop: Any, caps: Any) -> Any:
        if budget.step == stop_at:
            stop.set()
            return None
        return collect(budget, stop, caps)

    run.source.collect = stopping  # type: ignore[method-assign]
    train(run)
    weights = {name: tensor.clone() for name, tensor in run.learner.export_tensors()}
    run.close()
    return run.committed, weights


def replayed(learner: Ranks, place: Path, stop_at: int | None = None,
             budget: dict[str, Any] = BUDGET) -> dict[str, torch.Tensor]:
    """The weights of a run that trains from the ledger of the first one."""
    config = config_of(place, f"replayed-{stop_at}", budget)
    RunDir(config.run_dir).root.mkdir(parents=True)
    [(_, weights)] = learner.run(trained, config, stop_at, RunDir(place / "run").root)
    return weights


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def versions(paths: RunDir, step: int) -> set[int]:
    return {int(version) for version in open_step(paths.ledger, step).spans[1]}


def test_a_run_ahead_and_its_replay(learner: Ranks, tmp_path: Path) -> None:
    engine = PushedEngine(delay_s=0.2, holds=range(6 + PROMPTS, 6 + 3 * PROMPTS))  # steps 1 and 2
    with collector(config_of(tmp_path), engine) as paths:
        [(committed, weights)] = learner.run(trained, config_of(tmp_path))
    records = jsonl.read(paths.metrics)
    assert (committed, [record["step"] for record in records]) == (STEPS, list(range(STEPS)))

    # staleness_bounded, and the run was ahead: most steps have tokens of older weights
    for step, record in enumerate(records):
        assert all(0 <= step - version <= LAG for version in versions(paths, step))
        assert record["staleness_max"] == step - min(versions(paths, step))
        assert record["weight_version"] == str(max(versions(paths, step)))
    assert sum(record["stale_tokens"] > 0 for record in records) > STEPS / 2

    # slots_bounded, and every prompt is asked once
    assert engine.most[SAMPLES] <= (LAG + 1) * PROMPTS
    assert len(engine.asked) == STEPS * PROMPTS + 3 * 6  # three evaluations

    # pushes froze what was in flight, and let it go on
    push = ["pause", "start_weight_update", "update_weights", "finish_weight_update", "reset_prefix_cache", "resume"]
    assert engine.control == ["collective_rpc", "init_weight_transfer_engine", *push * (STEPS + 1)]
    assert engine.met >= 2 * PROMPTS
    assert all(record["mixed_versions"] > 0 for record in records[1:3])

    # a group has the cap of the step that consumes it
    assert [record["cap"] for record in records] == [15, 12, 9, 8, 9, 12, 15, 16]
    for step, record in enumerate(records):
        assert (open_step(paths.ledger, step).cap <= record["cap"]).all()

    assert same(weights, replayed(learner, tmp_path))
    assert sum(record["optimizer_steps"] for record in records) > LAG
    assert not same(weights, replayed(learner, tmp_path, 0))  # negative control


def test_a_stopped_run_goes_on(learner: Ranks, tmp_path: Path) -> None:
    """Steps that were sampled ahead when it stopped are used: nothing is trained twice, skipped or sampled again.

    The closed loop decides lag steps ahead, and so do the caps of prompts; the replay checks every one of them.
    """
    config, engine = config_of(tmp_path, budget=CLOSED), PushedEngine(delay_s=0.1)
    with collector(config, engine) as paths:
        assert learner.run(trained, config, 3)[0][0] == 3
    first = len(engine.asked)
    assert max(closed_steps(paths.ledger), default=0) <= 3 + LAG
    paths.collector.unlink()
    again = PushedEngine(delay_s=0.1)
    kept = sum(len(open_groups(paths, step)) for step in range(STEPS))
    with collector(config, again) as paths:
        withdraw(paths)
        [(committed, weights)] = learner.run(trained, config)
    assert committed == STEPS
    assert [record["step"] for record in jsonl.read(paths.metrics)] == list(range(STEPS))
    assert closed_steps(paths.ledger) == list(range(STEPS))
    for step in range(STEPS):
        rows = open_step(paths.ledger, step)
        places = {(int(group), int(at)) for group, at in zip(rows.group, rows.sample, strict=True)}
        assert len(places) == len(rows) == PROMPTS * SAMPLES
        assert all(0 <= step - version <= LAG for version in versions(paths, step))
    assert first >= kept
    assert sum(body["sampling_params"]["n"] == SAMPLES for body in again.asked) == STEPS * PROMPTS - kept
    caps = [open_step(paths.ledger, step).budget.cap for step in range(STEPS)]
    assert len(set(caps)) > 2, "answers follow from the prompts, and so does what the loop decides"
    assert same(weights, replayed(learner, tmp_path, budget=CLOSED))


def open_groups(paths: RunDir, step: int) -> set[int]:
    """Groups of a step that lie in the ledger, closed or not."""
    from siri_megatron.ledger import index

    closed = index.step_path(paths.ledger, step)
    place = closed if closed.exists() else closed.with_name(closed.name + ".open")
    found = index.parse((place / index.INDEX).read_bytes(), place) if place.exists() else None
    return {segment.group for segment in found.segments} if found else set()


@pytest.mark.parametrize("lag", [0, 1])
def test_bound_of_slots_follows_the_lag(learner: Ranks, tmp_path: Path, lag: int) -> None:
    """Negative control of the bound above: engines slower than training fill the slots, whatever their number."""
    engine = PushedEngine(delay_s=0.5)
    with collector(config_of(tmp_path, lag=lag), engine):
        learner.run(trained, config_of(tmp_path, lag=lag), 3)
    assert engine.most[SAMPLES] == (lag + 1) * PROMPTS
    assert ("pause" in engine.control) == (lag > 0)
