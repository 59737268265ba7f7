"""Log-probs of given tokens, and the entropy, from logits that are split over the vocabulary (tensor parallelism).

One maximum and one sum over the tensor-parallel group give both; megatron-core's cross-entropy needs three for the
log-probs alone, knows no temperature, and destroys the logits. Columns that pad the vocabulary count as impossible.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

IMPOSSIBLE = -1e30
"""Logit of a padding column. Finite: minus infinity times a probability of zero would be nan in the entropy."""


def token_logprobs(logits: Tensor, labels: Tensor, *, temperature: float, vocab: int,
                   group: dist.ProcessGroup) -> tuple[Tensor, Tensor]:
    """Log-softmax of logits / temperature at the labels, and the entropy of that distribution.

    Args:
        logits: [..., columns] this rank's columns of the padded vocabulary; any float dtype, not changed.
        labels: [...] token ids of the whole vocabulary.
        vocab: tokens without padding.
        group: the ranks that hold the other columns, in order.

    Returns:
        log-probs [...], with gradient; entropy [...], nats, without. Both float32.
    """
    logprobs, entropy = _TokenLogProbs.apply(logits, labels, temperature, vocab, group)
    return logprobs, entropy


class _TokenLogProbs(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits: Tensor, labels: Tensor, temperature: float, vocab: int,
                group: dist.ProcessGroup) -> tuple[Tensor, Tensor]:
        columns = logits.shape[-1]
        first = dist.get_rank(group) * columns
        scaled = logits.float() * (1 / temperature)
        if first + columns > vocab:
            scaled[..., max(0, vocab - first):] = IMPOSSIBLE
        shift = _reduced(scaled.amax(-1), dist.ReduceOp.MAX, group)
        scaled -= shift.unsqueeze(-1)
        inside = (labels >= first) & (labels < first + columns)
        local = torch.where(inside, labels - first, 0).unsqueeze(-1)
        exp = scaled.exp()
        picked = scaled.gather(-1, local).squeeze(-1) * inside
        total, moment, picked = _reduced(torch.stack([exp.sum(-1), (exp * scaled).sum(-1), picked]),
                                         dist.ReduceOp.SUM, group)
        log_total = total.log()
        entropy = log_total - moment / total
        ctx.save_for_backward(exp.div_(total.unsqueeze(-1)), local, inside)
        ctx.temperature, ctx.dtype = temperature, logits.dtype
        ctx.mark_non_differentiable(entropy)
        return picked - log_total, entropy

    @staticmethod
    def backward(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        """d log p(label) / d logit_j = (1[j = label] - p_j) / temperature"""
        softmax, local, inside = ctx.saved_tensors
        grad = (grad / ctx.temperature).unsqueeze(-1)
        result = softmax * -grad
        result.scatter_add_(-1, local, grad * inside.unsqueeze(-1))
        return result.to(ctx.dtype), None, None, None, None


def _reduced(value: Tensor, operation: Any, group: dist.ProcessGroup) -> Tensor:
    if dist.get_world_size(group) > 1:
        dist.all_reduce(value, op=operation, group=group)
    return value
