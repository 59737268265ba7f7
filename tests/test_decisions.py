"""What rank 0 decides, under the invariants' names: with every kind of state there is, over a real ledger."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from siri_megatron.budget.step_budget import StepBudget
from siri_megatron.config import RunConfig, validate
from siri_megatron.decisions import PARTS, Decisions
from siri_megatron.errors import ConfigError
from siri_megatron.learner.architecture import Architecture
from siri_megatron.ledger.read import StepRows, open_step
from siri_megatron.ledger.schema import Rollout
from siri_megatron.ledger.write import StepWriter
from siri_megatron.rollout.stats import step_stats

GRID = (8, 16, 32)
GROUPS, SIZE, CUT = 6, 4, 5
MODEL = {"model_type": "qwen2", "hidden_act": "silu", "hidden_size": 64, "intermediate_size": 192, "vocab_size": 64,
         "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "rms_norm_eps": 1e-6,
         "max_position_embeddings": 512, "tie_word_embeddings": False, "rope_theta": 10000.0}
CLOSED = {"window": 1, "dwell": 2, "longest_phase": 3, "slope": 12, "delta": 0.5}
CASES: dict[str, tuple[dict[str, Any], dict[str, Any], str]] = {
    "closed, leash, packed": ({"schedule": "closed", "closed": CLOSED, "prompt_caps": {"rule": "da_dler"}},
                              {"length_rule": "leash", "leash": {"target_share": 0.4}}, "packed"),
    "cosine, laser_d, bucketed": ({"prompt_caps": {"rule": "laser_d", "floor": 2}}, {"length_rule": "laser_d"},
                                  "bucketed"),
}


@pytest.fixture(params=CASES)
def config(request: pytest.FixtureRequest, tmp_path: Path) -> RunConfig:
    budget, reward, mode = CASES[request.param]
    return validate({
        "name": "run", "runs_dir": str(tmp_path), "model": {"path": str(tmp_path)}, "data": {"max_prompt_tokens": 8},
        "budget": {"l_min": 8, "l_max": 32, "cycle_steps": 6, "cycles": 2, **budget}, "reward": reward,
        "rollout": {"prompts_per_step": GROUPS, "samples_per_prompt": SIZE, "budget_grid": list(GRID)},
        "optimizer": {"lr": 1e-3},
        "batching": {"mode": mode, "tokens_per_micro_batch": 128} | ({"buckets": 2} if mode == "bucketed" else {}),
        "phases": {"expansion": {"advantage": "batch_std", "overlong": "soft"}}}, "test")


def decisions_of(config: RunConfig) -> Decisions:
    return Decisions(config, Architecture.of(MODEL), "local")


def sampled(ledger: Path, budget: StepBudget, caps: dict[str, int]) -> StepRows:
    """Rollouts of a step as that budget and those caps bring them about: short ones are right more often."""
    rng, writer = np.random.default_rng(budget.step), StepWriter(ledger, budget, "test")
    for group in range(GROUPS):
        cap = caps.get(f"p{group}", budget.cap)
        writer.append([rollout(budget, cap, group, sample, int(rng.integers(1, 8 + 6 * group)))
                       for sample in range(SIZE)])
    writer.close()
    return open_step(ledger, budget.step)


def rollout(budget: StepBudget, cap: int, group: int, sample: int, wanted: int) -> Rollout:
    length, right = min(wanted, cap), wanted % 3 > 0
    return Rollout(
        step=budget.step, phase=budget.phase, cap=cap, cap_version=budget.version, group=group, sample=sample,
        prompt_id=f"p{group}", tier="", answer="1", prompt_ids=[1, 2, 3], response_ids=[4] * length,
        logprobs=[-3.0] * length, finish_reason="stop", truncated=wanted > cap,
        outcome="right" if right and wanted <= cap else "wrong", reward=float(right and wanted <= cap),
        budget_rewards=[float(right and wanted <= min(at, cap)) for at in GRID],
        spans=[{"version": "0", "start": 0, "end": length}], engine=0, seconds=0.1)


def steps(decisions: Decisions, ledger: Path, first: int, end: int) -> list[Any]:
    """What was decided in each of these steps."""
    decided = []
    for step in range(first, end):
        budget = decisions.budget(step)
        caps = decisions.caps(budget)
        rows = open_step(ledger, step) if (ledger / f"step-{step:06d}").exists() else sampled(ledger, budget, caps)
        plan, figures = decisions.plan(rows, budget)
        shapes = decisions.count_shapes(plan)
        said = decisions.observe(rows, budget, plan, step_stats(rows, decisions.config.rollout))
        decided.append([budget, caps, plan, figures, shapes, said, decisions.phase_end(step), decisions.state()])
    return decided


def test_state_round_trip(config: RunConfig, tmp_path: Path) -> None:
    whole = steps(decisions_of(config), tmp_path / "ledger", 0, config.budget.steps)
    stopped = decisions_of(config)
    before = steps(stopped, tmp_path / "ledger", 0, CUT)
    saved = json.loads(json.dumps(stopped.state()))
    resumed = decisions_of(config)
    resumed.restore(saved)
    assert before + steps(resumed, tmp_path / "ledger", CUT, config.budget.steps) == whole


@pytest.mark.parametrize("lost", PARTS)
def test_a_lost_state_would_be_noticed(config: RunConfig, tmp_path: Path, lost: str) -> None:
    """Negative control: with one part of the state as it was at the start, other things are decided."""
    whole = steps(decisions_of(config), tmp_path / "ledger", 0, config.budget.steps)
    stopped, resumed = decisions_of(config), decisions_of(config)
    steps(stopped, tmp_path / "ledger", 0, CUT)
    state = {**stopped.state(), lost: resumed.state()[lost]}
    resumed.restore(state)
    if lost == "controller":  # an open loop's budgets come from the configuration
        if config.budget.schedule == "closed":
            with pytest.raises(ConfigError, match=f"step {CUT} has no budget"):
                resumed.budget(CUT)
        return
    after = steps(resumed, tmp_path / "ledger", CUT, config.budget.steps)
    assert any(one != other for one, other in zip(after, whole[CUT:], strict=True))


def test_from_what_was_consumed(config: RunConfig, tmp_path: Path) -> None:
    """The same steps give the same states: a replay decides as the run did."""
    first, again = (steps(decisions_of(config), tmp_path / "ledger", 0, config.budget.steps) for _ in range(2))
    assert first == again
    assert len({json.dumps(step[-1]) for step in first}) == len(first)
