"""Log-probs of given tokens, and the entropy, from logits that are split over the vocabulary (tensor parallelism).

One maximum and one sum over the tensor-parallel group give both; megatron-core's cross-entropy needs three for the
log-probs alone, knows no temperature, and destroys the logits. Columns that pad the vocabulary count as impossible.

Float32 copies exist of a chunk of tokens at a time, in forward and backward: what is kept for the backward is the
logits as they came (the model's dtype) and a few numbers a token; the softmax is made again from them. So of a
micro-batch of 16K tokens and 152K columns the peak is the logits and their gradient in the model's dtype, 5 + 5 GB in
bf16 (instead of 10 GB for each float32 copy), and the price is one more exponential. Making the logits themselves in
chunks, fused with the output layer, would save the rest but run that layer once more in the backward: a third of its
time again, on every step, for memory that a smaller micro-batch or tensor parallelism saves without.

Invariants:
- chunks_change_nothing: every number of a token is computed from its own row, whatever the chunk.
- repeatable: equal calls give equal bits (chunks depend on the shape alone).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

IMPOSSIBLE = -1e30
"""Logit of a padding column. Finite: minus infinity times a probability of zero would be nan in the entropy."""
CHUNK = 1 << 25
"""Entries of a chunk: 128 MiB a float32 copy (some three at once), and still a few hundred tokens of 152K columns a
kernel, so that launching them costs nothing."""


def token_logprobs(logits: Tensor, labels: Tensor, *, temperature: float, vocab: int, group: dist.ProcessGroup,
                   chunk: int = CHUNK) -> tuple[Tensor, Tensor]:
    """Log-softmax of logits / temperature at the labels, and the entropy of that distribution.

    Args:
        logits: [..., columns] this rank's columns of the padded vocabulary; any float dtype, not changed.
        labels: [...] token ids of the whole vocabulary.
        vocab: tokens without padding.
        group: the ranks that hold the other columns, in order.
        chunk: entries worked on at once in float32 (at least one token's).

    Returns:
        log-probs [...], entropy [...], nats. Both float32 and with gradient; that of an entropy which enters no loss
        costs nothing.
    """
    columns = logits.shape[-1]
    first = dist.get_rank(group) * columns
    shard = _Shard(first, max(0, min(columns, vocab - first)), 1 / temperature, max(1, chunk // columns), group)
    logprobs, entropy = _TokenLogProbs.apply(logits.reshape(-1, columns), labels.reshape(-1), shard)
    return logprobs.view(labels.shape), entropy.view(labels.shape)


@dataclass(frozen=True)
class _Shard:
    """This rank's columns, and how they are worked on."""

    first: int
    real: int
    """Columns that are tokens; padding lies behind them."""
    scale: float
    rows: int
    """Tokens of a chunk."""
    group: dist.ProcessGroup

    def chunks(self, tokens: int) -> Iterator[slice]:
        return (slice(start, start + self.rows) for start in range(0, tokens, self.rows))

    def highest(self, logits: Tensor) -> Tensor:
        """[n] largest scaled logit of each token over the whole vocabulary; exact in any dtype, so without a copy."""
        highest = (logits[:, :self.real].amax(-1).float() * self.scale if self.real
                   else torch.full(logits.shape[:1], IMPOSSIBLE, device=logits.device))
        return self.reduced(highest, dist.ReduceOp.MAX)

    def shifted(self, logits: Tensor, highest: Tensor, out: Tensor | None = None) -> Tensor:
        """[n, columns] a float32 copy: scaled logits minus the largest one."""
        shifted = torch.add(-highest.unsqueeze(-1), logits, alpha=self.scale, out=out)
        shifted[:, self.real:] = IMPOSSIBLE
        return shifted

    def local(self, labels: Tensor) -> tuple[Tensor, Tensor]:
        """([n, 1] column of each label here, or 0; [n] whether it is here)."""
        inside = (labels >= self.first) & (labels < self.first + self.real)
        return torch.where(inside, labels - self.first, 0).unsqueeze(-1), inside

    def reduced(self, value: Tensor, operation: Any) -> Tensor:
        if dist.get_world_size(self.group) > 1:
            dist.all_reduce(value, op=operation, group=self.group)
        return value


class _TokenLogProbs(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits: Tensor, labels: Tensor, shard: _Shard) -> tuple[Tensor, Tensor]:
        highest = shard.highest(logits)
        sums = torch.empty(3, len(labels), device=logits.device)
        for rows in shard.chunks(len(labels)):
            shifted = shard.shifted(logits[rows], highest[rows])
            local, inside = shard.local(labels[rows])
            sums[2, rows] = shifted.gather(-1, local).squeeze(-1) * inside
            exp = shifted.exp()
            sums[0, rows], sums[1, rows] = exp.sum(-1), shifted.mul_(exp).sum(-1)
        total, moment, picked = shard.reduced(sums, dist.ReduceOp.SUM)
        log_total = total.log()
        entropy = log_total - moment / total
        ctx.save_for_backward(logits, labels, highest, total, entropy)
        ctx.shard = shard
        ctx.set_materialize_grads(False)  # an entropy that enters no loss has no gradient, not one of zeros
        return picked - log_total, entropy

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None, entropy_grad: Tensor | None) -> tuple[Tensor, None, None]:
        """d log p(label)/d logit_j = (1[j = label] - p_j)/T, and d H/d logit_j = -p_j (log p_j + H)/T."""
        logits, labels, highest, total, entropy = ctx.saved_tensors
        shard, result = ctx.shard, torch.empty_like(logits)
        in_place = result.dtype is torch.float32
        for rows in shard.chunks(len(labels)):
            change = shard.shifted(logits[rows], highest[rows], out=result[rows] if in_place else None)
            factor = torch.zeros_like(total[rows]) if grad is None else grad[rows] * shard.scale
            if entropy_grad is None:
                change.exp_().mul_((-factor / total[rows]).unsqueeze(-1))
            else:
                surprise = change + (entropy[rows] - total[rows].log()).unsqueeze(-1)  # log p + H
                surprise.mul_((-entropy_grad[rows] * shard.scale).unsqueeze(-1)).sub_(factor.unsqueeze(-1))
                change.exp_().div_(total[rows].unsqueeze(-1)).mul_(surprise)
            local, inside = shard.local(labels[rows])
            change.scatter_add_(-1, local, (factor * inside).unsqueeze(-1))  # before rounding: 1 - p may be small
            if not in_place:
                result[rows] = change
        return result, None, None
