"""How long the learners take for a plan: the real micro-batches of `batching.plan`, optimizer step by step. Pure.

A pipeline runs at the pace of its slowest stage (the last one: it has the output layer). Before that stage starts, a
micro-batch goes forward through the stages before it; after it has ended, one goes back through them: the bubble, for
which a mean micro-batch is taken (a short one at the end does not shorten it: longer ones are still on their way back).
With equal stages and m equal micro-batches it is (pp - 1) / m of the rest; a virtual pipeline divides it
by vpp (Narayanan et al., 2104.04473, section 2.2). Data-parallel ranks wait for the slowest of them.

Invariants:
- as_simulated: the seconds are those of a simulated 1F1B schedule: with equal micro-batches exactly, with a plan's
  nearly.
- parts_add_up: busy, bubble, update and the passes before the first update are the whole.
- more_tokens_never_faster.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from siri_megatron.batching.micro_batches import MicroBatch
from siri_megatron.batching.plan import StepPlan
from siri_megatron.config import AlgorithmConfig, LearnerConfig
from siri_megatron.estimate.exchange import Exchange
from siri_megatron.estimate.rates import Rates
from siri_megatron.estimate.work import ModelWork


@dataclass(frozen=True)
class TrainingTime:
    """Seconds of a training step on the slowest ranks."""

    busy_s: float
    """Forward and backward passes of the slowest stage, with what it exchanges."""
    bubble_s: float
    """Filling and draining the pipeline."""
    update_s: float
    """Reducing gradients, AdamW."""
    before_s: float
    """Forward passes for the learner's own old log-probs and for the reference, with their bubble."""

    @property
    def seconds(self) -> float:
        return self.busy_s + self.bubble_s + self.update_s + self.before_s

    @property
    def bubble(self) -> float:
        """Share of the pipeline's time."""
        return self.bubble_s / (self.busy_s + self.bubble_s) if self.busy_s else 0.0


@dataclass(frozen=True)
class Pipeline:
    """Learners in their layout on a machine."""

    work: ModelWork
    layout: LearnerConfig
    rates: Rates
    gpus_per_node: int
    """0: everything is one node."""

    @property
    def exchange(self) -> Exchange:
        return Exchange(self.work, self.layout, self.rates, self.gpus_per_node)

    def step(self, plan: StepPlan, algorithm: AlgorithmConfig) -> TrainingTime:
        """A training step; no time for a plan without optimizer steps."""
        slowest = [max((self._run(plan, rank) for rank in step.ranks), key=lambda run: run[0] + run[1])
                   for step in plan.optimizer_steps]
        passes = (algorithm.old_logprobs == "decoupled") + (algorithm.kl_coef > 0)
        before = max((self._forward_only(plan, [micro for step in plan.optimizer_steps for micro in step.ranks[rank]])
                      for rank in range(self.layout.dp)), default=0.0) if plan.optimizer_steps and passes else 0.0
        update = self.rates.optimizer_step_s + self.exchange.gradients_s() + self.exchange.update_s()
        return TrainingTime(sum(busy for busy, _ in slowest), sum(bubble for _, bubble in slowest),
                            len(plan.optimizer_steps) * update, passes * before)

    def pipelined(self, micros: Sequence[tuple[float, float]], *, forward: float = 1.0, backward: float = 1.0
                  ) -> tuple[float, float]:
        """(busy, bubble) seconds of a run of micro-batches.

        Args:
            micros: (tokens, sum of squared sequence lengths) of each, in order.
            forward, backward: 1, or 0 for a pass that is not made.
        """
        if not micros:
            return 0.0, 0.0
        stages = range(self.layout.pp)
        last = self.layout.pp - 1
        slowest = [self.micro_batch(last, *micro) for micro in micros]
        busy = sum(forward * ahead + backward * back for ahead, back in slowest)
        mean = tuple(sum(sizes) / len(micros) for sizes in zip(*micros, strict=True))
        fill = sum(self.micro_batch(stage, *mean)[0] for stage in stages if stage != last)
        drain = sum(self.micro_batch(stage, *mean)[1] for stage in stages if stage != last)
        bubble = forward * fill + backward * drain
        return busy, bubble / self.layout.vpp

    def micro_batch(self, stage: int, tokens: float, squares: float) -> tuple[float, float]:
        """(forward, backward) seconds of a micro-batch on a stage."""
        passes = self.work.stage(self.layout, stage, tokens, squares)
        flop_s = self.rates.flop_s / (self.layout.tp * self.layout.cp)
        around = self.exchange.micro_batch_s(tokens) + self.rates.micro_batch_s * self.layout.vpp
        return passes.forward * flop_s + around / 2, passes.backward * flop_s + around / 2

    def _run(self, plan: StepPlan, rank: Sequence[MicroBatch]) -> tuple[float, float]:
        return self.pipelined([sizes(plan, micro) for micro in rank])

    def _forward_only(self, plan: StepPlan, rank: Sequence[MicroBatch]) -> float:
        return sum(self.pipelined([sizes(plan, micro) for micro in rank], backward=0.0))


def sizes(plan: StepPlan, micro: MicroBatch) -> tuple[float, float]:
    """(tokens with padding, sum of the squared lengths of the sequences) of a micro-batch."""
    tokens = micro.padded_tokens
    if plan.mode == "bucketed":
        return tokens, tokens * micro.width
    return tokens, sum(plan.lengths[row] ** 2 for row in micro.rows)
