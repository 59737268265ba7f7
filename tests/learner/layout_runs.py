"""One train step in a layout, measured against the reference: what `test_invariance` and its soak variant tabulate.

The step has two optimizer steps on the same rows in every layout. The first is planned as a run plans it: several rows
a micro-batch, widths uneven, groups split over micro-batches and ranks. In the second there are more micro-batches
than rows, so that some are dummies, and the first data-parallel rank has all the rows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import grpo_reference as reference
import numpy as np
import torch
import torch.distributed as dist
from models import Kind, load_model
from ranks import Rank

from siri_megatron.batching.micro_batches import MicroBatch, OptimizerStep
from siri_megatron.batching.plan import StepPlan
from siri_megatron.config import AlgorithmConfig, BatchingConfig, LearnerConfig, ModelConfig, OptimizerConfig
from siri_megatron.learner.settings import LearnerSettings

LAYERS = 4
TEMPERATURE = 0.7
GROUPS, SIZE = 6, 5
TOKENS = 160
"""Capacity of a micro-batch: about five rows."""
MANY = 16
"""Micro-batches of a rank in the second optimizer step, which has 15 rows."""
BUCKET = 3000
"""Parameters in a bucket: several buckets a chunk, as in a real model."""
OVERLAP, SHARDED = {"overlap": True}, {"distributed_optimizer": True}
OPTIMIZER = OptimizerConfig(lr=5e-3, weight_decay=0.1, clip_grad=0.05, eps=1e-4)
"""A large epsilon: AdamW then follows the size of the gradients, so that wrong clipping shows in the weights and the
rounding of tiny gradients does not (at 1e-8 such an entry steps by up to the learning rate in either direction)."""
Mode = Literal["packed", "bucketed"]
Tensors = dict[str, np.ndarray]


@dataclass(frozen=True)
class Case:
    """A row of the table."""

    layout: str
    kind: Kind
    mode: Mode
    loss: Literal["grpo", "dapo", "dr_grpo"] = "grpo"

    def __str__(self) -> str:
        return f"{self.layout}-{self.kind}-{self.mode}-{self.loss}"


@dataclass(frozen=True)
class Measured:
    """What a rank answers."""

    loss: float
    norm: float
    logprobs: list[list[float]]
    """Of every row, before the step."""
    gradients: list[Tensors]
    """Of each optimizer step, before clipping, under Hugging Face names."""
    weights: Tensors
    chunks: int
    attentions: int
    """Calls of this rank's first core attention in the train step."""
    tokens: int
    """Tokens that went through its layer in them."""


@dataclass(frozen=True)
class Errors:
    """Largest differences from the reference over all ranks."""

    logprob: float
    """Absolute."""
    loss: float
    """Absolute."""
    norm: float
    """Relative."""
    gradient: float
    """Of a tensor's worst entry, relative to the tensor's largest entry."""
    parameter: float
    """|w - w_reference| / |w_reference - w_start| of the worst tensor, Euclidean."""


@dataclass(frozen=True)
class Reference:
    """The reference's step, and what it started from."""

    expected: reference.Expected
    rows: reference.Rows
    logprobs: list[torch.Tensor]
    start: Tensors


@lru_cache(maxsize=32)
def reference_step(path: Path, loss: str) -> Reference:
    """Hugging Face on unpacked single sequences, autograd, torch's clipping and AdamW. In float64, so that what differs
    is the learner's own rounding."""
    model, algorithm = load_model(path).double(), AlgorithmConfig(loss=loss, mini_batches=2)
    rows = reference.rollouts(GROUPS, SIZE, model, TEMPERATURE)
    start = {name: value.detach().numpy().copy() for name, value in model.named_parameters()}
    with torch.no_grad():
        logprobs = [reference.hf_logprobs(model, row.prompt_ids, row.response_ids, TEMPERATURE)
                    for row in rows.rollouts]
    planned = plan(rows, algorithm, LearnerConfig(), "packed")
    return Reference(reference.train(model, rows, planned, algorithm, OPTIMIZER, TEMPERATURE), rows, logprobs, start)


def plan(rows: reference.Rows, algorithm: AlgorithmConfig, layout: LearnerConfig, mode: Mode) -> StepPlan:
    """The two optimizer steps that the module's docstring tells of."""
    batching = BatchingConfig(mode=mode, tokens_per_micro_batch=TOKENS)
    usual, many = (reference.plan(rows, algorithm, batching, dp=layout.dp, multiple=multiple, cp=layout.cp,
                                  lr=OPTIMIZER.lr)
                   for multiple in (layout.micro_batch_multiple, MANY))
    return replace(usual, optimizer_steps=(usual.optimizer_steps[0], lopsided(many.optimizer_steps[1])))


def lopsided(step: OptimizerStep) -> OptimizerStep:
    """The same micro-batches, those with rows first: later data-parallel ranks get nothing but dummies."""
    micros = sorted((micro for rank in step.ranks for micro in rank), key=lambda micro: not micro.rows)
    count = len(step.ranks[0])
    return OptimizerStep(tuple(tuple(micros[first : first + count]) for first in range(0, len(micros), count)))


def settings(path: Path, layout: LearnerConfig, case: Case, dtype: Literal["float32", "bfloat16"] = "float32"
             ) -> LearnerSettings:
    return LearnerSettings(ModelConfig(path=path, dtype=dtype), layout, OPTIMIZER,
                           AlgorithmConfig(loss=case.loss, mini_batches=2), TEMPERATURE, case.mode, TOKENS, 64, 1)


def run_step(rank: Rank, given: LearnerSettings, planned: StepPlan, rows: reference.Rows, fault: str = "") -> Measured:
    """Log-probs, then the train step, on this rank; with a fault if one is named."""
    with rank.learner(given, bucket=BUCKET) as learner, FAULTS[fault](learner):
        logprobs = learner.logprobs([(row.prompt_ids, row.response_ids) for row in rows.rollouts])
        gradients: list[Tensors] = []
        tokens: list[int] = []
        step, layer = learner.optimizer.step, learner.chunks[0].decoder.layers[0]

        def recording_step() -> Any:
            gradients.append(exported_gradients(learner))
            return step()
        learner.optimizer.step = recording_step
        layer.self_attention.core_attention.register_forward_hook(lambda *_: tokens.append(0))
        layer.register_forward_hook(lambda _, inputs, output: tokens.append(output[0].shape[0] * output[0].shape[1]))
        metrics = learner.train_step(changed_plan(planned, learner, fault), rows)
        return Measured(metrics["loss"], metrics["grad_norm"], logprobs, gradients, exported(learner),
                        len(learner.chunks), tokens.count(0), sum(tokens))


def gather_shards(chunk: Any) -> None:
    """A distributed optimizer leaves on each rank the reduced gradients of its own shards only."""
    if chunk.ddp_config.use_distributed_optimizer:
        group = chunk.intra_dp_cp_group
        for bucket in (bucket for buckets in chunk.bucket_groups for bucket in buckets.buckets):
            shards = list(bucket.grad_data.chunk(dist.get_world_size(group)))
            dist.all_gather(shards, shards[dist.get_rank(group)].clone(), group=group)


@dataclass(frozen=True)
class Gradients:
    """A model chunk with its reduced gradients in the weights' place, for the export."""

    chunk: Any

    def named_parameters(self) -> list[tuple[str, torch.Tensor]]:
        return [(name, parameter.main_grad) for name, parameter in self.chunk.named_parameters()]

    def parameters(self) -> Iterator[torch.Tensor]:
        return (gradient for _, gradient in self.named_parameters())


def exported(learner: Any) -> Tensors:
    return {name: value.float().numpy().copy() for name, value in learner.export_tensors()}


def exported_gradients(learner: Any) -> Tensors:
    """Under Hugging Face names."""
    from siri_megatron.weights.export import export_tensors
    for chunk in learner.ddp:
        gather_shards(chunk)
    chunks = [Gradients(chunk) for chunk in learner.chunks]
    return {name: value.numpy().copy() for name, value in export_tensors(chunks, learner.architecture)}


def errors(answers: list[Measured], wanted: Reference) -> Errors:
    """Every rank's answer against the reference."""
    expected = wanted.expected
    return Errors(
        logprob=max((torch.tensor(own) - one).abs().max().item() for answer in answers
                    for own, one in zip(answer.logprobs, wanted.logprobs, strict=True)),
        loss=max(abs(answer.loss - float(np.mean(expected.losses))) for answer in answers),
        norm=max(abs(answer.norm / float(np.mean(expected.norms)) - 1) for answer in answers),
        gradient=max(max(tensor_errors(own, one).values()) for answer in answers
                     for own, one in zip(answer.gradients, expected.gradients, strict=True)),
        parameter=max(float(np.linalg.norm(answer.weights[name] - value) / np.linalg.norm(value - wanted.start[name]))
                      for answer in answers for name, value in expected.weights.items()))


def tensor_errors(found: Tensors, wanted: Tensors) -> dict[str, float]:
    """Largest error of each tensor's entries, relative to its largest entry."""
    assert found.keys() == wanted.keys()
    return {name: float(np.abs(found[name] - wanted[name]).max() / np.abs(wanted[name]).max()) for name in wanted}


def assert_close(found: Tensors, wanted: Tensors, relative: float) -> None:
    errors = tensor_errors(found, wanted)
    name = max(errors, key=lambda name: errors[name])
    assert errors[name] < relative, f"{name}: {errors[name]:.2g}"


def changed_plan(planned: StepPlan, learner: Any, fault: str) -> StepPlan:
    """With the fault "own denominators": each data-parallel rank takes the mean over its own rows."""
    if fault != "own denominators":
        return planned
    weights = list(planned.token_weights)
    for step in planned.optimizer_steps:
        own = rows_of(step.ranks[learner.dp_rank])
        share = len(own) / sum(len(rows_of(rank)) for rank in step.ranks)
        for row in own:
            weights[row] /= share
    return replace(planned, token_weights=tuple(weights))


def rows_of(micros: tuple[MicroBatch, ...]) -> list[int]:
    return [row for micro in micros for row in micro.rows]


@contextmanager
def no_fault(_: Any) -> Iterator[None]:
    yield


@contextmanager
def unmarked_norms(learner: Any) -> Iterator[None]:
    """Each rank keeps the gradients of its own part of the sequence."""
    for chunk in learner.chunks:
        for name, parameter in chunk.named_parameters():
            if "norm" in name:
                parameter.sequence_parallel = False
    yield


@contextmanager
def untied_gradients(learner: Any) -> Iterator[None]:
    """First and last stage keep their own gradients of the shared embedding."""
    for chunk in learner.chunks:
        chunk.share_embeddings_and_output_weights = False
    yield


@contextmanager
def swapped_chunks(learner: Any) -> Iterator[None]:
    """The layers of the first chunk in the second, and the other way round."""
    first, second = ([value.data for value in chunk.decoder.layers.parameters()] for chunk in learner.chunks)
    with torch.no_grad():
        for one, other in zip(first, second, strict=True):
            kept = one.clone()
            one.copy_(other)
            other.copy_(kept)
    yield


@contextmanager
def weighing_padding(_: Any) -> Iterator[None]:
    """Tokens that are no response weigh a little in the loss."""
    from siri_megatron.learner import learner as module
    made = module.make_batch

    def leaking(*args: Any) -> Any:
        batch = made(*args)
        return replace(batch, weights=torch.where(batch.mask.bool(), batch.weights, 1e-3),
                       advantages=torch.where(batch.mask.bool(), batch.advantages, 1.0))
    module.make_batch = leaking
    try:
        yield
    finally:
        module.make_batch = made


@contextmanager
def unreduced_gradients(learner: Any) -> Iterator[None]:
    """Each data-parallel rank steps with the gradients of its own rows."""
    learner.config.finalize_model_grads_func = lambda *_, **__: None
    yield


@contextmanager
def unordered_attention(_: Any) -> Iterator[None]:
    """The parts of the context-parallel ranks one after another, as if each held one piece of the sequence."""
    from siri_megatron.learner.context import ContextRanks
    with replaced(ContextRanks, "whole_sequence",
                  lambda own, values, place: whole(own, values, place.sort().values)) as whole:
        yield


@contextmanager
def unsummed_attention(_: Any) -> Iterator[None]:
    """Each context-parallel rank drops what the others' queries add to the gradients of its keys and values."""
    from siri_megatron.learner import context
    with replaced(context, "gather_from_sequence_parallel_region",
                  lambda values, group: gather(values, False, group=group)) as gather:
        yield


@contextmanager
def replaced(owner: Any, name: str, stand_in: Any) -> Iterator[Any]:
    """Yields what stood there."""
    original = getattr(owner, name)
    setattr(owner, name, stand_in)
    try:
        yield original
    finally:
        setattr(owner, name, original)


@contextmanager
def no_clipping(learner: Any) -> Iterator[None]:
    learner.optimizer.config.clip_grad = 1e9
    for part in getattr(learner.optimizer, "chained_optimizers", []):
        part.config.clip_grad = 1e9
    yield


@contextmanager
def stock_shapes(_: Any) -> Iterator[None]:
    """megatron-core's own exchange of shapes, in one batch for both directions."""
    from siri_megatron.learner.pipeline import P2PCommunicator, TwoWayShapes
    own = TwoWayShapes._communicate_shapes
    TwoWayShapes._communicate_shapes = P2PCommunicator._communicate_shapes
    try:
        yield
    finally:
        TwoWayShapes._communicate_shapes = own


FAULTS: dict[str, Callable[[Any], Any]] = {
    "": no_fault, "own denominators": no_fault, "norms not summed": unmarked_norms,
    "copies not summed": untied_gradients, "chunks swapped": swapped_chunks, "padding weighs": weighing_padding,
    "attention in the ranks' order": unordered_attention, "own attention gradients": unsummed_attention,
    "stock shapes": stock_shapes, "no clipping": no_clipping, "not reduced": unreduced_gradients}
