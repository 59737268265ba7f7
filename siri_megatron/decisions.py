"""What rank 0 decides about a step, and everything that it decides from. No I/O.

    budget(s), caps(s) ─► rollouts of step s ─► plan: method of the phase, shaped rewards, advantages, micro-batches
         ▲                                                                                          │
         └───────────────────── observe: metrics, rows, shapes ◄── the step is trained ◄────────────┘

The other ranks hear of each decision over the control plane. Every module behind it is pure, with a state that is small
JSON; `state` puts them together for the commit record, under the names of `PARTS`.

Invariants:
- state_round_trip: save, load and go on decides as never stopping.
- from_what_was_consumed: the state depends on the configuration and the consumed steps alone.
- decided_by_what_was_heard: budget and caps of step s follow from the steps before s - rollout.lag (budget.admission).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from siri_megatron.batching.lengths import RowLengths, row_quantum
from siri_megatron.batching.plan import StepPlan, plan_step
from siri_megatron.batching.shapes import ShapePlanner
from siri_megatron.budget.controller import controller_of
from siri_megatron.budget.method import method_at
from siri_megatron.budget.prompt_caps import PromptCaps
from siri_megatron.budget.step_budget import StepBudget
from siri_megatron.config import RunConfig
from siri_megatron.estimate.activations import Spec
from siri_megatron.estimate.capacity import micro_bytes
from siri_megatron.learner.architecture import Architecture
from siri_megatron.ledger.read import StepRows
from siri_megatron.reward.advantages import uniform_groups, uniform_share
from siri_megatron.reward.length_rule import RuleRows
from siri_megatron.reward.overlong import shaped
from siri_megatron.reward.rules import length_rule_of
from siri_megatron.rollout.stats import mean

PARTS = ("controller", "length_rule", "prompt_caps", "shapes")


class Part(Protocol):
    """Something with a state."""

    def state(self) -> dict[str, Any]:
        """Small JSON."""

    def restore(self, state: Mapping[str, Any]) -> None:
        """Take over a state."""


class Decisions:
    """Made on every rank, so that all know the run's length; only rank 0's hear what is measured."""

    def __init__(self, config: RunConfig, architecture: Architecture, spec: Spec) -> None:
        """architecture, spec: of the learner, for the cost and the memory of its micro-batches."""
        self.config, self.architecture = config, architecture
        self.controller = controller_of(config.budget, grid=config.rollout.budget_grid, lag=config.rollout.lag)
        self.length_rule, self.prompt_caps = length_rule_of(config), PromptCaps(config.budget, config.rollout.lag)
        self.shapes = ShapePlanner(config.batching.buckets, row_quantum(config.learner.cp),
                                   longest=config.data.max_prompt_tokens + config.budget.l_max)
        self._micro_bytes = micro_bytes(architecture, config.learner, config.model.dtype, spec=spec,
                                        mode=config.batching.mode, algorithm=config.algorithm)

    def budget(self, step: int) -> StepBudget:
        """The budget of a step."""
        return self.controller.budget(step)

    def phase_end(self, step: int) -> str | None:
        """Tag of the phase whose last step this is; decided once the step was observed."""
        return self.controller.phase_end(step)

    def caps(self, budget: StepBudget, ahead: int = 0) -> dict[str, int]:
        """Caps of the prompts that get less than the step's.

        Args:
            ahead: steps from the next one to be consumed to this one, at most `rollout.lag`; asked for at any of these
                distances, the caps of a step are the same.
        """
        return self.prompt_caps.below(budget.cap, ahead)

    def plan(self, batch: StepRows, budget: StepBudget) -> tuple[StepPlan, dict[str, float | None]]:
        """The plan of a step, and figures about its rewards for the metrics."""
        config, learner, rows = self.config, self.config.learner, RowLengths.of(batch)
        method = method_at(config, budget.phase)
        reward = shaped(method.overlong, rows.reward, rows.response, batch.truncated, cap=batch.cap,
                        buffer=config.reward.overlong_buffer)
        reward = self.length_rule.shape(RuleRows.of(batch), reward, budget)
        plan = plan_step(replace(rows, reward=reward), budget, config.algorithm, config.batching, method=method,
                         dp=learner.dp, multiple=learner.micro_batch_multiple, cp=learner.cp,
                         l_max=config.budget.l_max, max_prompt=config.data.max_prompt_tokens,
                         micro_bytes=self._micro_bytes, crossover=self.architecture.attention_crossover,
                         shapes=self.shapes.decide, most_groups=config.rollout.prompts_per_step)
        own = rows.group < config.rollout.prompts_per_step
        return plan, {"shaped_reward": mean(reward[own]), "uniform_groups": uniform_share(reward[own], rows.group[own]),
                      **self._filled(plan, reward, rows.group), **self.length_rule.figures()}

    def _filled(self, plan: StepPlan, reward: NDArray[np.float64], group: NDArray[np.int64]) -> dict[str, float]:
        """Dynamic sampling: how far the step could be filled, and what is beyond it."""
        if not self.config.rollout.max_refill:
            return {}
        wanted, groups = self.config.rollout.prompts_per_step, len(np.unique(group))
        trained = groups - plan.dropped_groups
        return {"unfilled": 1 - trained / wanted,
                "surplus_groups": groups - len(np.unique(group[uniform_groups(reward, group)])) - trained}

    def observe(self, batch: StepRows, budget: StepBudget, plan: StepPlan, stats: Mapping[str, Any]) -> dict[str, str]:
        """Hear of a consumed step, in order. Says what was decided because of it: event -> message."""
        self.length_rule.observe(RuleRows.of(batch))
        self.prompt_caps.observe(batch)
        method = self._new_method(budget, plan)  # first: a closed loop that hears a step forgets those before it
        said = {"method": method, "controller": self.controller.observe(budget.step, stats)}
        return {kind: message for kind, message in said.items() if message}

    def count_shapes(self, plan: StepPlan) -> dict[str, float]:
        """Take note of the shapes that a step ran; returns its metrics."""
        return self.shapes.count_shapes(micro.shape for micro in plan.micro_batches())

    def state(self) -> dict[str, Any]:
        return {name: part.state() for name, part in self._parts().items()}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Take over the state of a commit.

        Raises:
            ConfigError: it is of a run with another schedule.
        """
        for name, part in self._parts().items():
            part.restore(state[name])

    def _parts(self) -> dict[str, Part]:
        return {name: getattr(self, name) for name in PARTS}

    def _new_method(self, budget: StepBudget, plan: StepPlan) -> str:
        """What a phase changes of the method, at its first step."""
        before = self.controller.budget(budget.step - 1).phase if budget.step else budget.phase
        changed = plan.method.changes(method_at(self.config, before))
        return changed and f"{budget.phase} from step {budget.step}: {changed}"
