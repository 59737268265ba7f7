"""A whole cycle through the real learner: as the cap moves, only the plan changes.

Rank 0 plans every step anew from the budget (`decisions.plan`), the learner trains it, and beside it stands a
reference without any plan: transformers in float64, sample by sample, the loss as the paper prints it. Seen are the
shapes that ran, where the weights, gradients and moments lie, and the most that torch's allocator gave out.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import grpo_reference as reference
import numpy as np
import pytest
import torch
from models import load_model, write_model
from ranks import Rank, Ranks

from siri_megatron.budget.step_budget import StepBudget
from siri_megatron.config import OptimizerConfig, RunConfig, validate
from siri_megatron.decisions import Decisions
from siri_megatron.learner.settings import LearnerSettings

BENCH = Path(__file__).resolve().parents[2] / "tools" / "bench"
GROUPS, SIZE, PROMPT, L_MAX = 10, 4, 8, 120
CAPACITY = 512
OPTIMIZER = OptimizerConfig(lr=2e-3, eps=1e-4, clip_grad=0.5)
"""A large epsilon, so that AdamW follows the size of the gradients and not their rounding."""
LOSS, NORM, WEIGHTS = 2e-6, 1e-4, 1e-3
MEMORY = 1.10
"""Measured over predicted: what the memory model promises."""
RESERVED = "weights", "gradients", "moments"


@dataclass(frozen=True)
class Seen:
    """One step on one rank."""

    cap: int
    capacity: int
    loss: float
    norm: float
    shapes: set[tuple[int, int]]
    planned: set[tuple[int, int]]
    places: dict[str, frozenset[int]]
    peak: int
    """Bytes over what stays between two steps."""


@dataclass(frozen=True)
class Cycle:
    """What a rank answers."""

    steps: list[Seen]
    allowed: int
    """Bytes that the run is provisioned for, as `Seen.peak` counts them."""
    weights: dict[str, np.ndarray]


def config_of(place: Path, mode: str, layout: dict[str, int], tokens: int = CAPACITY) -> RunConfig:
    return validate({
        "name": mode, "runs_dir": str(place), "model": {"path": str(place / "model")}, "tensorboard": False,
        "data": {"max_prompt_tokens": PROMPT}, "learner": layout, "optimizer": OPTIMIZER.model_dump(),
        "budget": {"l_min": 16, "l_max": L_MAX, "cycle_steps": 6, "cycles": 1},
        "rollout": {"prompts_per_step": GROUPS, "samples_per_prompt": SIZE, "budget_grid": [L_MAX]},
        "algorithm": {"mini_batches": 1},
        "batching": {"mode": mode, "tokens_per_micro_batch": tokens} | ({"buckets": 3} if mode == "bucketed" else {}),
    }, "test")


class StepRows:
    """Rollouts of one step as the ledger gives them: long-tailed lengths, clipped to the cap."""

    def __init__(self, budget: StepBudget, vocab: int) -> None:
        rng, n = np.random.default_rng(budget.step), GROUPS * SIZE
        self.response_length = np.minimum(rng.lognormal(3.6, 0.7, n).astype(int) + 1, budget.cap)
        self.prompt_length = rng.integers(2, PROMPT + 1, n)
        self.group, self.cap = np.arange(n) // SIZE, np.full(n, budget.cap)
        self.truncated, self.forced_length = self.response_length == budget.cap, np.zeros(n, int)
        self.reward = np.where(self.truncated, 0.0, rng.integers(0, 2, n).astype(float))
        self.outcome = np.where(self.reward > 0, "right", "wrong")
        self._tokens = [(rng.integers(0, vocab, prompt), rng.integers(0, vocab, response),
                         rng.normal(-6.2, 0.2, response).astype(np.float32))
                        for prompt, response in zip(self.prompt_length, self.response_length, strict=True)]

    def tokens(self, row: int) -> tuple[Any, Any, Any]:
        return self._tokens[row]

    def forced(self, _: int) -> tuple[int, int]:
        return 0, 0


def bench() -> Any:
    if str(BENCH) not in sys.path:
        sys.path.insert(0, str(BENCH))
    import memory
    return memory


def cycle(rank: Rank, config: RunConfig, plan_capacity: int | None = None) -> Cycle:
    """Train every step of the schedule. plan_capacity: plan for so many tokens, whatever is provisioned."""
    import siri_megatron.learner.learner as module
    with rank.learner(LearnerSettings.of_run(config)) as learner:
        batching = config.batching.model_copy(update={"tokens_per_micro_batch": plan_capacity or CAPACITY})
        decisions = Decisions(config.model_copy(update={"batching": batching}), learner.architecture, learner.spec)
        shapes: set[tuple[int, int]] = set()
        module.make_batch = partial(noting, module.make_batch, shapes)
        try:
            steps = [one_step(learner, decisions, step, shapes) for step in range(config.budget.steps)]
        finally:
            module.make_batch = module.make_batch.args[0]
        weights = {name: value.numpy().copy() for name, value in learner.export_tensors()}
        return Cycle(steps, allowed(learner, config), weights)


def noting(make_batch: Any, shapes: set[tuple[int, int]], *args: Any, **named: Any) -> Any:
    batch = make_batch(*args, **named)
    shapes.add(tuple(batch.ids.shape))
    return batch


def one_step(learner: Any, decisions: Decisions, step: int, shapes: set[tuple[int, int]]) -> Seen:
    from siri_megatron.batching.buckets import planned_shapes
    budget = decisions.budget(step)
    rows: Any = StepRows(budget, learner.architecture.vocab)
    plan, _ = decisions.plan(rows, budget)
    shapes.clear()
    with bench().Peak() as peak:
        metrics = learner.train_step(plan, rows)
    planned = planned_shapes(decisions.shapes.widths, decisions.shapes.capacity) if plan.mode == "bucketed" else set()
    return Seen(budget.cap, plan.capacity, metrics["loss"], metrics["grad_norm"], set(shapes), planned,
                places(learner), peak.most)


def places(learner: Any) -> dict[str, frozenset[int]]:
    """Addresses of what stays."""
    weights = [value for chunk in learner.chunks for value in chunk.parameters()]
    gradients = [buffer.grad_data for chunk in learner.ddp for buffer in chunk.buffers]
    states = [part.optimizer for part in getattr(learner.optimizer, "chained_optimizers", [learner.optimizer])]
    moments = [state[name] for one in states for state in one.state.values() for name in ("exp_avg", "exp_avg_sq")]
    return {name: frozenset(value.untyped_storage().data_ptr() for value in values)
            for name, values in zip(RESERVED, (weights, gradients, moments), strict=True)}


def allowed(learner: Any, config: RunConfig) -> int:
    """The planned peak: micro-batches of the configured size whose rows are as long as the largest cap allows."""
    from siri_megatron.estimate.memory import learner_memory
    from siri_megatron.learner.mcore import parallel_state
    ranks = learner_memory(learner.architecture, config.learner, "float32", spec=learner.spec,
                           mode=config.batching.mode, tokens=config.batching.tokens_per_micro_batch,
                           longest=PROMPT + L_MAX, micro_batches=2 * config.learner.pp, algorithm=config.algorithm)
    own = ranks[parallel_state.get_pipeline_model_parallel_rank()]
    return max(own.micro_batches, own.between)


def unplanned(config: RunConfig) -> tuple[list[float], list[float], dict[str, np.ndarray], list[float]]:
    """Losses, gradient norms, final weights, and losses without one sample: no micro-batches, no token weights."""
    from siri_megatron.budget.controller import controller_of
    model, controller = load_model(config.model.path).double(), controller_of(config.budget, grid=())
    adamw, expected, short = reference.torch_adamw(model, OPTIMIZER), reference.Expected(), []
    for step in range(controller.steps):
        budget = controller.budget(step)
        objectives = sample_objectives(model, StepRows(budget, model.config.vocab_size))
        short.append(-torch.stack(objectives[1:]).mean().item())
        reference.update(model, adamw, -torch.stack(objectives).mean(), OPTIMIZER, expected)
    weights = {name: value.detach().numpy() for name, value in model.named_parameters()}
    return expected.losses, expected.norms, weights, short


def sample_objectives(model: Any, rows: StepRows) -> list[torch.Tensor]:
    """SIRI's objective (arXiv 2509.25176 eq. 1) of every sample whose group carries a signal."""
    objectives = []
    for group in range(GROUPS):
        members = range(group * SIZE, (group + 1) * SIZE)
        rewards = [rows.reward[row] for row in members]
        if len(set(rewards)) == 1:
            continue
        for row in members:
            advantage = (rows.reward[row] - np.mean(rewards)) / (np.std(rewards, ddof=1) + 1e-6)
            prompt, response, old = rows.tokens(row)
            own = reference.hf_logprobs(model, prompt.tolist(), response.tolist(), 1.0)
            ratio = (own - torch.tensor(old)).exp()
            objectives.append(torch.min(ratio * advantage, ratio.clamp(0.8, 1.28) * advantage).mean())
    return objectives


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("cycle")
    write_model(place / "model", "qwen2", hidden_size=64, intermediate_size=192, vocab_size=512)
    return place


@pytest.fixture(scope="module")
def expected(place: Path) -> Any:
    losses, norms, weights, short = unplanned(config_of(place, "packed", {}))
    return SimpleNamespace(losses=losses, norms=norms, weights=weights, short=short)


@pytest.fixture(scope="module", params=[("packed", {"dp": 2}), ("packed", {"pp": 2}), ("bucketed", {"pp": 2})],
                ids=lambda case: f"{case[0]}-{'-'.join(case[1])}")
def cycles(request: pytest.FixtureRequest, place: Path, ranks: Ranks) -> list[Cycle]:
    mode, layout = request.param
    found: list[Cycle] = ranks.run(cycle, config_of(place, mode, layout), timeout_s=300)
    return found


def test_the_loss_is_that_of_no_plan(cycles: list[Cycle], expected: Any, place: Path) -> None:
    start = {name: value.detach().numpy() for name, value in load_model(place / "model").named_parameters()}
    for rank in cycles:
        assert [seen.loss for seen in rank.steps] == pytest.approx(expected.losses, abs=LOSS)
        assert [seen.norm for seen in rank.steps] == pytest.approx(expected.norms, rel=NORM)
        for name, value in expected.weights.items():
            change = np.linalg.norm(value - start[name])
            assert np.linalg.norm(rank.weights[name] - value) < WEIGHTS * change, name


def test_a_lost_sample_would_be_noticed(expected: Any) -> None:
    """Negative control: the loss without one sample is ten times its limit away, at every cap."""
    assert all(abs(one - other) > 10 * LOSS for one, other in zip(expected.losses, expected.short, strict=True))


def test_nothing_is_allocated_anew(cycles: list[Cycle]) -> None:
    """Weights, gradient buffers and moments lie where they lay; a step never takes more than was planned for."""
    for rank in cycles:
        for seen in rank.steps[1:]:
            assert seen.places == rank.steps[0].places
        assert all(places for places in rank.steps[0].places.values())
        assert max(seen.peak for seen in rank.steps[1:]) <= MEMORY * rank.allowed


def test_no_shape_outside_the_planned(cycles: list[Cycle]) -> None:
    for rank in cycles:
        for seen in rank.steps:
            if seen.planned:
                assert seen.shapes <= seen.planned, seen.cap
            else:
                assert all(height == 1 and width <= seen.capacity and width % 8 == 0 for height, width in seen.shapes)


def test_the_plan_follows_the_cap(cycles: list[Cycle]) -> None:
    """Rows get shorter by a factor of eight and come back; so do the micro-batches that they need."""
    caps = [seen.cap for seen in cycles[0].steps]
    assert (min(caps), caps[-1]) == (16, L_MAX)
    lowest = cycles[0].steps[caps.index(16)]
    assert max(width for _, width in lowest.shapes) < max(width for _, width in cycles[0].steps[-1].shapes)
    assert lowest.capacity >= cycles[0].steps[-1].capacity


def test_larger_micro_batches_would_be_noticed(place: Path, ranks: Ranks) -> None:
    """Negative control: planned for three times the tokens, the peak is above what was provisioned."""
    config = config_of(place, "packed", {"dp": 2})
    found = ranks.run(cycle, config, 3 * CAPACITY, timeout_s=300)
    assert any(max(seen.peak for seen in rank.steps[1:]) > MEMORY * rank.allowed for rank in found)
