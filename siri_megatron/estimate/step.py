"""A training step at one cap: its rollouts, its real plan, the seconds of each part. Pure.

    lengths under the cap ─► generation (engines)  ─┐
              └─► batching.plan ─► training (learners) ─► push ─► step

With `rollout.lag: 0` the parts follow one another, whether or not learners and engines have processors of their own:
the one side waits while the other works. With a lag the collector runs ahead, and a step takes as long as the slower
side.

Invariants:
- parts_add_up: the seconds of a step are those of its parts (lag: of the slower side and what both wait for).
- the_real_plan: micro-batches, fill and counts are those that `batching.plan` makes for such lengths.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np

from siri_megatron.batching.lengths import RowLengths
from siri_megatron.batching.plan import StepPlan, plan_step
from siri_megatron.budget.method import method_at
from siri_megatron.budget.step_budget import StepBudget
from siri_megatron.estimate.generation import EngineWork, Request, generate
from siri_megatron.estimate.room import cache_suffices, kv_tokens
from siri_megatron.estimate.setup import Setup


@dataclass(frozen=True)
class CapEstimate:
    """A step at one cap."""

    cap: int
    mean_tokens: float
    """Response tokens of a sample."""
    truncated: float
    """Share of samples that the cap cuts."""
    tokens: float
    """Response tokens of the step."""
    train_tokens: float
    """Tokens fed to the learners, padding excluded."""
    optimizer_steps: float
    micro_batches: float
    """Of a rank, over the optimizer steps."""
    micro_batch_tokens: float
    """Mean tokens of a micro-batch, padding included."""
    capacity: float
    """Tokens that a micro-batch may hold."""
    widths: tuple[int, ...]
    """bucketed: the padded widths; packed: the longest row."""
    fill: float
    imbalance: float
    rounds: float
    """Decode rounds of the slowest engine."""
    generation_s: float
    verification_s: float
    training_s: float
    bubble: float
    """Share of the pipeline's time that its filling and draining takes."""
    push_s: float
    overhead_s: float
    step_s: float

    @property
    def bottleneck(self) -> Literal["generation", "training"]:
        return "generation" if self.generation_s >= self.training_s else "training"


def at_cap(setup: Setup, cap: int) -> CapEstimate:
    """Estimate a step at this cap."""
    config, rates = setup.config, setup.machine.rates
    rows = sampled_rows(setup, cap)
    plan = planned(setup, rows, cap)
    engines = generation(setup, rows)
    training = setup.pipeline.step(plan, config.algorithm)
    push_s = rates.push_s + setup.weight_bytes * rates.push_byte_s
    stats, micros = plan.stats(), plan.micro_batches()
    sides = (engines.seconds + rates.verification_s, training.seconds)
    return CapEstimate(
        cap, float(rows.response.mean()), setup.lengths.truncated(cap), float(rows.response.sum()),
        float(sum(plan.lengths[row] for micro in micros for row in micro.rows)), stats["optimizer_steps"],
        len(micros) / config.learner.dp, float(np.mean([micro.padded_tokens for micro in micros] or [0])),
        stats["capacity"], _widths(plan), stats["fill"], stats["imbalance"], engines.rounds, engines.seconds,
        rates.verification_s, training.seconds, training.bubble, push_s, rates.overhead_s,
        (max(sides) if config.rollout.lag else sum(sides)) + push_s + rates.overhead_s)


def sampled_rows(setup: Setup, cap: int) -> RowLengths:
    """The rollouts of a step: groups that are kept have both right and wrong answers, the others none that is right."""
    rollout = setup.config.rollout
    prompts, samples = rollout.prompts_per_step, rollout.samples_per_prompt
    response = setup.lengths.responses(cap, prompts * samples)
    group = np.repeat(np.arange(prompts), samples)
    signal = group < round(setup.kept_at(cap) * prompts)
    reward = np.where(signal, np.arange(len(group)) % 2, 0).astype(np.float64)
    return RowLengths(np.full(len(group), prompt_tokens(setup)), response, group, reward)


def planned(setup: Setup, rows: RowLengths, cap: int) -> StepPlan:
    """What `batching.plan` makes of the rollouts."""
    config, layout = setup.config, setup.config.learner
    budget = StepBudget(0, 0, "compression", cap, 1)
    return plan_step(rows, budget, config.algorithm, config.batching, method=method_at(config, budget.phase),
                     dp=layout.dp, multiple=layout.micro_batch_multiple, l_max=config.budget.l_max,
                     max_prompt=config.data.max_prompt_tokens, cp=layout.cp, micro_bytes=setup.micro_bytes,
                     crossover=setup.arch.attention_crossover)


def generation(setup: Setup, rows: RowLengths) -> EngineWork:
    """The engine that is done last with these rollouts."""
    share = not setup.config.reproducible  # a prompt's cached prefix is used again
    groups: dict[int, list[Request]] = {}
    for group, prompt, response in zip(rows.group.tolist(), rows.prompt.tolist(), rows.response.tolist(), strict=True):
        asked = groups.setdefault(group, [])
        asked.append(Request(prompt, response, cached=share and bool(asked)))
    return _generate(setup, list(groups.values()))


def evaluation_s(setup: Setup) -> float:
    """An evaluation: the questions of every suite at its largest budget, all at once on all engines.

    A suite whose number of questions the config does not say is left out.
    """
    settings = setup.config.evaluation
    groups = _questions(setup, settings.problems, settings.samples, settings.temperature, max(settings.budgets))
    for suite in settings.suites:
        temperature = settings.temperature if suite.temperature is None else suite.temperature
        groups += _questions(setup, suite.problems or 0, suite.samples or settings.samples, temperature,
                             max(suite.budgets or settings.budgets))
    return _generate(setup, groups).seconds + setup.machine.rates.evaluation_s


def _questions(setup: Setup, problems: int, samples: int, temperature: float, cap: int) -> list[list[Request]]:
    """Greedy decoding answers a question once."""
    each = samples if temperature > 0 else 1
    lengths = setup.lengths.responses(cap, problems * each).reshape(problems, each).tolist()
    return [[Request(prompt_tokens(setup), response, cached=sample > 0) for sample, response in enumerate(row)]
            for row in lengths]


def prompt_tokens(setup: Setup) -> int:
    return min(max(1, round(setup.lengths.prompt)), setup.config.data.max_prompt_tokens)


def _generate(setup: Setup, groups: list[list[Request]]) -> EngineWork:
    engines = setup.config.engines
    room = kv_tokens(setup) if cache_suffices(setup) else math.inf  # else there is no such run: its misfit is said
    return generate(groups, setup.decoding, engines=engines.count, places=engines.max_num_seqs, room=room)


def _widths(plan: StepPlan) -> tuple[int, ...]:
    return plan.widths or tuple(sorted({micro.width for micro in plan.micro_batches() if micro.rows})[-1:])
