"""Tensors of a micro-batch, from rows of the ledger or from sequences at hand.

The model reads prompt + response without its last token, and predicts the same shifted by one; the mask marks the
predictions that are response tokens and were sampled. Both shapes come from one rule, the flat index `where` of each
fed token:

    packed    [1, width]            where = begin + position         segments one after another, padding at the end
    bucketed  [height, width]       where = row x width + position   one segment a row, padding behind each

With context parallelism every rank makes the same rows and keeps its part of them (`batching.context`): of each segment
of a packed row, which is padded to a length that can be cut, or of each padded row.

Invariants:
- parts_make_the_whole: put together by `Batch.order`, the context-parallel ranks' parts are the rows of a single rank.
- order_kept: the masked tokens, read row by row, are the sampled tokens of the responses in the order of the sequences.
- padding_weighs_nothing: padding, empty rows and dummies have token 0, mask 0 and weight 0, hence no gradient.
- forced_weighs_nothing: response tokens that were not sampled are read, but have mask 0 and weight 0.
- dummy_for_empty: a micro-batch without rows is one token of weight 0 and padding, so that every rank makes the same
  collectives, and sequence parallelism can cut it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from siri_megatron.batching.buckets import bucket_widths
from siri_megatron.batching.context import zigzag
from siri_megatron.batching.lengths import round_up, row_quantum
from siri_megatron.batching.micro_batches import MicroBatch, OptimizerStep, optimizer_step
from siri_megatron.batching.plan import StepPlan
from siri_megatron.learner.attention import PackedRow, segments
from siri_megatron.learner.context import ALONE, ContextRanks
from siri_megatron.learner.losses import Samples
from siri_megatron.learner.mcore import PackedSeqParams
from siri_megatron.learner.model import Spec
from siri_megatron.ledger.read import StepRows

Mode = Literal["packed", "bucketed"]
BUCKETS = 4
"""Padded widths of a batch that comes without a plan."""


@dataclass(frozen=True)
class Sample:
    """A prompt, its response, and what the loss needs of it."""

    prompt_ids: Sequence[int] | NDArray[Any]
    response_ids: Sequence[int] | NDArray[Any]
    token_weights: float | Sequence[float] = 0.0
    """Weight in the loss: one for all response tokens, or one for each."""
    logprobs: Sequence[float] | NDArray[Any] | None = None
    """Old log-probs of the response tokens; None where the loss does not look at them."""
    advantage: float = 0.0
    forced: tuple[int, int] = (0, 0)
    """[start, end) of the response tokens that were not sampled."""

    @property
    def fed(self) -> int:
        """Tokens that the model reads."""
        return len(self.prompt_ids) + len(self.response_ids) - 1


@dataclass(frozen=True)
class Batch:
    """A micro-batch on the rank's device, or this context-parallel rank's part of it. All tensors [b, s]."""

    ids: Tensor
    labels: Tensor
    mask: Tensor
    """1.0 where the label is a response token that was sampled."""
    rollout_logprobs: Tensor
    """The engines' log-probs of the response tokens."""
    old_logprobs: Tensor
    """The old policy of the ratio: those of the engines, or (decoupled) the learner's own before the train step."""
    advantages: Tensor
    weights: Tensor
    segment: Tensor
    """int64: number of the sample, from 0, that a response token belongs to; 0 elsewhere."""
    samples: int
    """Samples; a dummy counts as one."""
    packing: PackedSeqParams | None
    """How segments lie in a packed row; None: one segment a row."""
    tokens: int
    """Tokens without padding, all parts together."""
    context: ContextRanks
    order: Tensor | None
    """int64: numbers in the whole micro-batch, row by row, of the tokens of all context-parallel ranks, rank by rank;
    None without context parallelism."""
    correction: Tensor | None = None
    """Factor of the surrogate, without gradient (`learner.correction`); None: 1."""
    corrected: Tensor | None = None
    """bool: the correction cuts the factor of this token or masks it."""
    reference_logprobs: Tensor | None = None
    """Log-probs under the starting weights; None: no KL term."""

    def by_sample(self, counts: Tensor) -> Samples:
        """Sums over samples. counts: [b, s] 1.0 for the response tokens that take part."""
        return Samples(self.segment, counts, self.samples, self.context.total)

    def whole(self, values: Tensor) -> Tensor:
        """[b, width] values of the whole micro-batch, without gradient. values: [b, s]."""
        return values if self.order is None else self.context.whole(values, self.order)


def plan_samples(plan: StepPlan, rows: StepRows, micro: MicroBatch) -> list[Sample]:
    """The samples of a micro-batch; reads only its rows."""
    tokens = ((row, rows.tokens(row)) for row in micro.rows)
    return [Sample(prompt, response, plan.token_weights[row], logprobs, plan.advantages[row], rows.forced(row))
            for row, (prompt, response, logprobs) in tokens]


def cut(lengths: Sequence[int], mode: Mode, capacity: int, *, dp: int, multiple: int, cp: int = 1) -> OptimizerStep:
    """Micro-batches for sequences that come without a plan. lengths: [rows] tokens fed; a longer one sits alone."""
    quantum = row_quantum(cp)
    capacity = max(capacity // quantum * quantum, round_up(max(lengths), quantum))
    fed = np.array(lengths, np.int64)
    return optimizer_step(np.arange(len(fed)), fed, mode, capacity, dp=dp, multiple=multiple,
                          widths=bucket_widths(fed, BUCKETS, quantum), cp=cp)


def make_batch(samples: Sequence[Sample], mode: Mode, width: int, spec: Spec, device: torch.device,
               context: ContextRanks = ALONE, height: int = 1) -> Batch:
    """Lay samples out.

    Args:
        width: tokens of the packed row, or padded length of each bucketed row, all context-parallel parts together.
        height: bucketed: at least so many rows; those beyond the samples are empty.
    """
    real = bool(samples)
    if not real:
        samples = [Sample((0,), (0,))]
    prompts = np.array([len(sample.prompt_ids) for sample in samples])
    fed = np.array([sample.fed for sample in samples])
    responses, total = fed - prompts + 1, int(fed.sum())
    tokens = np.concatenate([part for sample in samples for part in (sample.prompt_ids, sample.response_ids)])
    ends = np.cumsum(fed + 1)
    inside = np.arange(total) - np.repeat(np.cumsum(fed) - fed, fed)
    count = 1 if mode == "packed" else max(height, len(fed))
    rooms = segments(fed, width, context.size) if mode == "packed" else np.full(count, width)
    where = np.repeat((np.cumsum(rooms) - rooms)[: len(fed)], fed) + inside
    answers = where[inside >= np.repeat(prompts, fed) - 1]
    order = zigzag(rooms, context.size)

    def tensor(values: Any, at: NDArray[np.int64], dtype: Any = np.float32) -> Tensor:
        flat = np.zeros(count * width, dtype)
        flat[at] = values
        return torch.from_numpy(flat[order[context.rank]].reshape(count, -1)).to(device)

    sampled = _sampled(responses, [sample.forced for sample in samples])
    known = [0.0 if sample.logprobs is None else sample.logprobs for sample in samples]
    rollout_logprobs = tensor(_on_response(responses, known), answers)
    return Batch(
        ids=tensor(np.delete(tokens, ends - 1), where, np.int64),
        labels=tensor(np.delete(tokens, ends - fed - 1), where, np.int64),
        mask=tensor(sampled * float(real), answers),
        rollout_logprobs=rollout_logprobs, old_logprobs=rollout_logprobs,
        advantages=tensor(np.repeat([sample.advantage for sample in samples], responses), answers),
        weights=tensor(_on_response(responses, [sample.token_weights for sample in samples]) * sampled, answers),
        segment=tensor(np.repeat(np.arange(len(samples)), responses), answers, np.int64), samples=len(samples),
        packing=_packing(fed, width, spec, device, context) if mode == "packed" else None,
        tokens=total if real else 0, context=context,
        order=torch.from_numpy(order.ravel()).to(device) if context.size > 1 else None)


def _on_response(counts: NDArray[np.int64], values: Sequence[float | Sequence[float] | NDArray[Any]]
                 ) -> NDArray[Any]:
    """One value for each response token: a sample's scalar repeated, or its own. counts: [samples] response tokens."""
    return np.concatenate([np.full(count, value) if isinstance(value, int | float) else value
                           for count, value in zip(counts.tolist(), values, strict=True)])


def _sampled(counts: NDArray[np.int64], forced: Sequence[tuple[int, int]]) -> NDArray[np.float64]:
    """1.0 for each response token that was sampled, 0.0 for forced ones. counts: [samples] response tokens."""
    flags = np.ones(int(counts.sum()))
    for begin, (start, end) in zip((np.cumsum(counts) - counts).tolist(), forced, strict=True):
        flags[begin + start : begin + end] = 0.0
    return flags


def _packing(fed: NDArray[np.int64], width: int, spec: Spec, device: torch.device,
             context: ContextRanks = ALONE) -> PackedSeqParams:
    """Segments for the local spec's attention, or for Transformer Engine's, which wants padding to be a segment too.

    With context parallelism Transformer Engine asks for bounds with padding beside those without. They are one object
    here, by which it knows that nothing lies between segments: what pads one stands at its end, where causal attention
    cannot see it.

    The latter's longest segment must be exact: megatron-core 0.19 takes a rotary table that is as long as the row for
    one of absolute positions, and a rounded length may be that (rope_utils.py, `_apply_rotary_pos_emb_thd`).
    """
    if spec == "local":
        return PackedRow.of(fed, width, device, context)
    rooms = segments(fed, width, context.size)
    lengths = rooms[rooms > 0]
    bounds = torch.from_numpy(np.append(0, np.cumsum(lengths)).astype(np.int32)).to(device)
    longest = int(lengths.max())
    padded = bounds if context.size > 1 else None
    return PackedSeqParams(qkv_format="thd", cu_seqlens_q=bounds, cu_seqlens_kv=bounds, max_seqlen_q=longest,
                           max_seqlen_kv=longest, cu_seqlens_q_padded=padded, cu_seqlens_kv_padded=padded)
