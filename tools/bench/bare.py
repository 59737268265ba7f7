"""The yardstick of the learner's benchmark: a bare megatron-core training loop, as one would write it by hand.

What it shares with the learner, so that both do equal work: the model (megatron-core's GPTModel with the same layers
and the same attention over packed rows), DDP, the optimizer, the clipped loss, and which segments lie together in
which micro-batch. What it does not do: plan, read rows, build batches (its tensors are made before the clock starts),
pad (a pack is as wide as its tokens), entropy, statistics, metrics, checks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from lengths import Step
from torch import Tensor

from siri_megatron.batching.micro_batches import MicroBatch
from siri_megatron.batching.plan import StepPlan
from siri_megatron.learner.architecture import Architecture
from siri_megatron.learner.attention import PackedRow
from siri_megatron.learner.logprobs import token_logprobs
from siri_megatron.learner.mcore import get_forward_backward_func, parallel_state
from siri_megatron.learner.model import build_model, transformer_config
from siri_megatron.learner.optimizer import build_optimizer, wrap_data_parallel
from siri_megatron.learner.settings import LearnerSettings
from siri_megatron.weights.load import load_hf

CLIP = 0.8, 1.28
"""Of the ratio, in GRPO as SIRI prints it."""


@dataclass(frozen=True)
class Pack:
    """A micro-batch without padding. Tensors [1, t]."""

    ids: Tensor
    labels: Tensor
    old_logprobs: Tensor
    advantages: Tensor
    weights: Tensor
    """0 where the label is a prompt token."""
    segments: PackedRow
    tokens: Tensor
    """[] what megatron's schedule wants to count."""

    @classmethod
    def of(cls, step: Step, plan: StepPlan, micro: MicroBatch) -> Pack:
        """Written out row by row: this is the independent half of the comparison, and it is not timed."""
        columns: dict[str, list[Any]] = {name: [] for name in ("ids", "labels", "old", "advantages", "weights")}
        for row in micro.rows:
            rollout = step.rows.rollout(row)
            sequence, prompt = rollout.prompt_ids + rollout.response_ids, [0.0] * (len(rollout.prompt_ids) - 1)
            count = len(rollout.response_ids)
            columns["ids"] += sequence[:-1]
            columns["labels"] += sequence[1:]
            columns["old"] += prompt + rollout.logprobs
            columns["advantages"] += prompt + [plan.advantages[row]] * count
            columns["weights"] += prompt + [plan.token_weights[row]] * count
        tensors = [torch.tensor([values]) for values in columns.values()]
        lengths = np.array([plan.lengths[row] for row in micro.rows])
        return cls(*tensors, PackedRow.of(lengths, int(lengths.sum()), torch.device("cpu")),
                   torch.tensor(lengths.sum(), dtype=torch.int))


class BareLoop:
    """A second model beside the learner's, in the process groups that the learner has started."""

    def __init__(self, settings: LearnerSettings, architecture: Architecture) -> None:
        self.settings, self.vocab = settings, architecture.vocab
        config = transformer_config(architecture, settings.layout, settings.model)
        self.chunks = build_model(architecture, config, "local", context=settings.context)
        load_hf(self.chunks, architecture, settings.model.path)
        self.ddp = wrap_data_parallel(self.chunks, config, settings.layout)
        self.optimizer = build_optimizer(settings.optimizer, self.ddp, config)

    def packs(self, step: Step, plan: StepPlan) -> list[list[Pack]]:
        """[optimizer step][micro-batch] of this rank."""
        rank = parallel_state.get_data_parallel_rank()
        return [[Pack.of(step, plan, micro) for micro in part.ranks[rank] if micro.rows]
                for part in plan.optimizer_steps]

    def train(self, packs: list[list[Pack]]) -> list[Tensor]:
        """The optimizer steps. Returns the losses of the micro-batches (last pipeline stage)."""
        schedule, losses = get_forward_backward_func(), []
        for part in packs:
            self.ddp[0].zero_grad_buffer()
            self.optimizer.zero_grad()
            losses += schedule(forward_step_func=self._forward, data_iterator=iter(part), model=self.ddp[0],
                               num_microbatches=len(part), seq_length=1, micro_batch_size=1, forward_only=False)
            self.optimizer.step()
        return losses

    def _forward(self, packs: Iterator[Pack], chunk: Any) -> tuple[Tensor, Callable[[Tensor], tuple[Any, ...]]]:
        pack = next(packs)
        return chunk(pack.ids, None, None, packed_seq_params=pack.segments), partial(self._loss, pack)

    def _loss(self, pack: Pack, logits: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The clipped surrogate, summed with each token's weight."""
        ratio = (self._logprobs(logits, pack.labels) - pack.old_logprobs).exp()
        objective = torch.minimum(ratio * pack.advantages, ratio.clamp(*CLIP) * pack.advantages)
        loss = -(objective * pack.weights).sum()
        return loss, pack.tokens, loss.detach()

    def _logprobs(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Of the labels, without the entropy; torch's own log-softmax where this rank holds the whole vocabulary."""
        temperature = self.settings.temperature
        if self.settings.layout.tp == 1:
            scaled = logits if temperature == 1 else logits / temperature
            return scaled.log_softmax(-1).gather(-1, labels.unsqueeze(-1)).squeeze(-1)
        return token_logprobs(logits, labels, temperature=temperature, vocab=self.vocab,
                              group=parallel_state.get_tensor_model_parallel_group())[0]
