"""One rank of the learner: a Megatron model, its optimizer, and what the loop asks of them.

    train_step:  forward passes for old and reference log-probs, where in use (`before`)
        for each optimizer step:  plan ─► this rank's micro-batches ─► forward, backward ─► clip, AdamW

Every method is collective: all ranks call it with the same arguments, and none of them waits in it for anything that is
not there already.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from siri_megatron.batching.micro_batches import MicroBatch
from siri_megatron.batching.plan import StepPlan
from siri_megatron.errors import RunFailed
from siri_megatron.learner import statistics
from siri_megatron.learner.architecture import read_config
from siri_megatron.learner.batch import Batch, Mode, Sample, cut, make_batch, plan_samples
from siri_megatron.learner.before import Columns, columns_before
from siri_megatron.learner.context import ContextRanks
from siri_megatron.learner.control import ControlPlane
from siri_megatron.learner.entropy import EntropyControl
from siri_megatron.learner.groups import start_groups, stop_groups
from siri_megatron.learner.layout import check_layout
from siri_megatron.learner.losses import Clip
from siri_megatron.learner.mcore import parallel_state
from siri_megatron.learner.model import build_model, chosen_spec, device, transformer_config
from siri_megatron.learner.objectives import keep_logprobs, policy_objective, supervised_objective
from siri_megatron.learner.optimizer import (
    build_optimizer,
    gather_weights,
    learning_rate,
    set_learning_rate,
    wrap_data_parallel,
)
from siri_megatron.learner.reference import Reference
from siri_megatron.learner.schedule import Objective, run_schedule
from siri_megatron.learner.settings import LearnerSettings
from siri_megatron.ledger.read import StepRows
from siri_megatron.weights.export import export_tensors
from siri_megatron.weights.load import load_hf


class Learner:
    """The model in this rank's part of the layout. Enter `megatron_runtime()` before making one.

    Attributes:
        chunks: model chunks of this rank, unwrapped.
        ddp: the same, wrapped for data parallelism.
        optimizer: megatron-core's.
        updates: optimizer steps made so far (drives the warm-up).
        control: how rank 0 tells the other ranks what it decided; None in a single process.
        entropy: weight of the entropy bonus.
        is_rank0: this rank decides, and sends weights to the engines.
    """

    def __init__(self, settings: LearnerSettings, control: ControlPlane | None = None) -> None:
        """Start the process groups, build the model, load the weights of settings.model.path.

        Raises:
            ConfigError: the layout does not fit the model or the number of ranks.
            ModelError: the model directory cannot be used.
        """
        self.settings = settings
        self.architecture = check_layout(read_config(settings.model.path), settings.layout, context=settings.context)
        start_groups(settings.layout, control, settings.seed)
        self.spec, self.device = chosen_spec(settings.model), device()
        self.config = transformer_config(self.architecture, settings.layout, settings.model)
        self.chunks = build_model(self.architecture, self.config, self.spec, context=settings.context)
        load_hf(self.chunks, self.architecture, settings.model.path)
        self.reference = Reference(self.chunks) if settings.algorithm.kl_coef else None
        self.ddp = wrap_data_parallel(self.chunks, self.config, settings.layout)
        self.optimizer = build_optimizer(settings.optimizer, self.ddp, self.config)
        self.updates = 0
        self.entropy = EntropyControl(settings.algorithm)
        self.control = control
        self.rank = dist.get_rank()
        self.context = ContextRanks.here()
        self.dp_rank = parallel_state.get_data_parallel_rank()
        self.is_rank0 = self.rank == 0

    def train_step(self, plan: StepPlan, rows: StepRows) -> dict[str, float]:
        """All optimizer steps of a plan. A plan without any trains nothing.

        Returns:
            Metrics, the same on every rank: loss and grad_norm as means over the optimizer steps, lr of the last one,
            clip range, token means, train_tokens (fed, without padding), train_s, micro_batches and optimizer_steps.

        Raises:
            RunFailed: the loss or the gradient norm is not finite.
        """
        start, kept, norms, lr = time.perf_counter(), [], [], 0.0
        algorithm, method = self.settings.algorithm, plan.method
        steps = [step.ranks[self.dp_rank] for step in plan.optimizer_steps]
        entropy_weight, columns = self.entropy.weight(method.entropy_coef), self._columns_before(plan, rows, steps)
        for number, micros in enumerate(steps):
            lr = learning_rate(method.lr, self.settings.optimizer.warmup_steps, self.updates)
            batches = map(replace_columns, self._plan_batches(plan, rows, micros), columns[number])
            objective = policy_objective(algorithm, Clip(method.clip_low, method.clip_high), first=number == 0,
                                         entropy_weight=entropy_weight)
            kept += self._forward_backward(batches, len(micros), objective)
            norms.append(self._update(lr))
        total = self._over_ranks(kept)
        metrics = statistics.policy_metrics(total, len(norms), algorithm)
        if total["tokens"]:
            self.entropy.observe(metrics["entropy"])
        if entropy_weight or self.entropy.in_use:
            metrics["entropy_weight"] = entropy_weight
        _check_finite(metrics["loss"], norms)
        return metrics | {
            "grad_norm": sum(norms) / max(1, len(norms)), "lr": lr, "clip_low": method.clip_low,
            "clip_high": method.clip_high, "optimizer_steps": float(len(norms)),
            "train_tokens": float(_fed_tokens(plan)), "micro_batches": float(len(plan.micro_batches())),
            "train_s": time.perf_counter() - start}

    def sft_step(self, samples: Sequence[tuple[Sequence[int], Sequence[int], float | Sequence[float]]],
                 lr: float) -> dict[str, float]:
        """One supervised update on (prompt_ids, response_ids, token weights); the weights hold the denominator.

        Returns:
            Metrics, the same on every rank: loss (sum of weight x negative log-likelihood), entropy (token mean),
            grad_norm, lr, train_tokens (fed, without padding), train_s, micro_batches (of a rank).

        Raises:
            RunFailed: the loss or the gradient norm is not finite.
        """
        start = time.perf_counter()
        items = [Sample(prompt, response, weights) for prompt, response, weights in samples]
        micros = self._cut(items, "packed", self.settings.layout.dp)[self.dp_rank]
        kept = self._forward_backward(self._batches(items, micros, "packed"), len(micros), supervised_objective)
        norm = self._update(lr)
        total = self._over_ranks(kept)
        _check_finite(total["loss"], [norm])
        return {"loss": total["loss"], "entropy": total["entropy"] / max(1.0, total["tokens"]), "grad_norm": norm,
                "lr": lr, "train_tokens": float(sum(item.fed for item in items)), "micro_batches": float(len(micros)),
                "train_s": time.perf_counter() - start}

    def logprobs(self, sequences: Sequence[tuple[Sequence[int], Sequence[int]]],
                 mode: Mode | None = None) -> list[list[float]]:
        """Log-probs of each response token at the sampling temperature, for (prompt_ids, response_ids).

        Every data-parallel replica computes all of them. mode: shape of the micro-batches; None: settings.mode.
        """
        mode = mode or self.settings.mode
        items = [Sample(prompt, response) for prompt, response in sequences]
        micros = self._cut(items, mode, 1)[0]
        with torch.no_grad():
            kept = self._run(self._batches(items, micros, mode), len(micros), keep_logprobs, forward_only=True)
        flat = self._from_last_stage(kept, sum(len(item.response_ids) for item in items))
        order = [row for micro in micros for row in micro.rows]
        pieces = flat.split([len(items[row].response_ids) for row in order])
        by_row = dict(zip(order, (piece.tolist() for piece in pieces), strict=True))
        return [by_row[row] for row in range(len(items))]

    def export_tensors(self) -> Iterator[tuple[str, Tensor]]:
        """(Hugging Face name, full tensor) of every weight, in the model's order, on every rank."""
        self.gather_weights()
        return export_tensors(self.chunks, self.architecture)

    def state(self) -> dict[str, Any]:
        """What a checkpoint holds beside model and optimizer: JSON, the same on every rank."""
        return {"updates": self.updates, "entropy": self.entropy.state()}

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from what `state` gave."""
        self.updates = int(state["updates"])
        self.entropy.restore(state["entropy"])

    def gather_weights(self) -> None:
        """Complete the weights in `chunks` after an optimizer step, for whoever reads them there."""
        gather_weights(self.ddp)

    def close(self) -> None:
        """Leave the process groups."""
        stop_groups()

    def _columns_before(self, plan: StepPlan, rows: StepRows,
                        steps: Sequence[Sequence[MicroBatch]]) -> list[list[Columns]]:
        micros = [micro for step in steps for micro in step]
        if self.reference:
            self.gather_weights()  # the swap takes them out and puts them back

        def forward(objective: Objective) -> list[Any]:
            with torch.no_grad():
                return self._run(self._plan_batches(plan, rows, micros), len(micros), objective, forward_only=True)

        return columns_before(self.settings.algorithm, [len(step) for step in steps], forward, self.reference,
                              parallel_state.get_data_parallel_group())

    def _forward_backward(self, batches: Iterator[Batch], count: int, objective: Objective) -> list[Tensor]:
        for chunk in self.ddp:
            chunk.zero_grad_buffer()
        self.optimizer.zero_grad()
        return self._run(batches, count, objective)

    def _run(self, batches: Iterator[Batch], count: int, objective: Objective, *,
             forward_only: bool = False) -> list[Any]:
        return run_schedule(self.ddp, batches, count, objective, temperature=self.settings.temperature,
                            vocab=self.architecture.vocab, forward_only=forward_only)

    def _update(self, lr: float) -> float:
        """Clip, step. Returns the gradient norm before clipping."""
        set_learning_rate(self.optimizer, lr)
        _, norm, _ = self.optimizer.step()
        self.updates += 1
        return float(norm)

    def _over_ranks(self, kept: list[Tensor]) -> dict[str, float]:
        counts = parallel_state.is_pipeline_last_stage() and parallel_state.get_tensor_model_parallel_rank() == 0
        return statistics.over_ranks(kept, counts=counts, device=self.device)

    def _from_last_stage(self, kept: list[Tensor], size: int) -> Tensor:
        """What the last pipeline stage kept, one flat float32 tensor, on every stage."""
        flat = torch.cat(kept) if kept else torch.empty(size, device=self.device)
        dist.broadcast(flat, parallel_state.get_pipeline_model_parallel_last_rank(),
                       group=parallel_state.get_pipeline_model_parallel_group())
        return flat

    def _cut(self, items: Sequence[Sample], mode: Mode, dp: int) -> tuple[tuple[MicroBatch, ...], ...]:
        return cut([item.fed for item in items], mode, self.settings.tokens_per_micro_batch, dp=dp,
                   multiple=self.settings.layout.micro_batch_multiple, cp=self.settings.layout.cp).ranks

    def _plan_batches(self, plan: StepPlan, rows: StepRows, micros: Sequence[MicroBatch]) -> Iterator[Batch]:
        return (self._batch(plan_samples(plan, rows, micro), plan.mode, micro) for micro in micros)

    def _batches(self, items: Sequence[Sample], micros: Sequence[MicroBatch], mode: Mode) -> Iterator[Batch]:
        return (self._batch([items[row] for row in micro.rows], mode, micro) for micro in micros)

    def _batch(self, samples: list[Sample], mode: Mode, micro: MicroBatch) -> Batch:
        return make_batch(samples, mode, micro.width, self.spec, self.device, self.context, micro.height)


def replace_columns(batch: Batch, columns: Columns) -> Batch:
    return replace(batch, **columns) if columns else batch


def _fed_tokens(plan: StepPlan) -> int:
    return sum(plan.lengths[row] for micro in plan.micro_batches() for row in micro.rows)


def _check_finite(loss: float, norms: list[float]) -> None:
    if not all(math.isfinite(value) for value in (loss, *norms)):
        raise RunFailed(f"loss={loss}, gradient norms={norms}", rule="both are finite in every optimizer step",
                        fix="resume from the last checkpoint with a lower optimizer.lr")
