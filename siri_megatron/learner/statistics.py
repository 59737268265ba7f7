"""What is measured on the tokens of a train step, summed over micro-batches, optimizer steps and ranks.

`ratio` is pi/pi_old of a sampled token, the ratio of the loss. The *gap* is learner minus engine log-prob under the
same weights, the mismatch of the two implementations (mismatch_*): in bypass it is known in the first optimizer step
only, whose weights are still those of the engines (later the policy has moved too); decoupled it is pi_old's, of every
token.
`weight` is the importance weight of the learner against the engines: in bypass the ratio itself, decoupled rho.
"""

from __future__ import annotations

import math

import torch
import torch.distributed as dist
from torch import Tensor

from siri_megatron.config import AlgorithmConfig
from siri_megatron.learner.batch import Batch

SUMS = ("tokens", "loss", "entropy", "clipped", "ratio", "weight", "weight_squared", "gap", "gap_kl", "gap_tokens",
        "corrected", "kl_reference")
MAX = "gap_max"


@torch.no_grad()
def policy_statistics(loss: Tensor, logprobs: Tensor, entropy: Tensor, clipped: Tensor, divergence: Tensor | None,
                      batch: Batch, *, first: bool, decoupled: bool) -> Tensor:
    """[len(SUMS) + 1] float64 sums over the response tokens of a micro-batch, and the largest gap.

    Args:
        loss: [] the micro-batch's share of the loss; the rest: [b, s].
        divergence: KL estimates against the reference, if it is in use.
        first: this is the first optimizer step.
        decoupled: batch.old_logprobs are the learner's own.
    """
    mask = batch.mask
    moved = (logprobs - batch.old_logprobs) * mask
    gap = (batch.old_logprobs - batch.rollout_logprobs) * mask if decoupled else moved
    ratio, weight, measured = moved.exp(), gap.exp(), first or decoupled
    kl = weight - 1 - gap  # >= 0, and unbiased for KL(engine || learner) as the tokens are the engine's (Schulman's k3)
    tokens, zero = mask.sum(), torch.zeros_like(loss)
    sums = [tokens, loss, (entropy * mask).sum(), (clipped * mask).sum(), (ratio * mask).sum(),
            (weight * mask).sum(), (weight.square() * mask).sum(), gap.abs().sum() * measured, kl.sum() * measured,
            tokens * measured, (batch.corrected * mask).sum() if batch.corrected is not None else zero,
            (divergence * mask).sum() if divergence is not None else zero]
    return torch.stack([*sums, gap.abs().max() * measured]).double()


@torch.no_grad()
def likelihood_statistics(loss: Tensor, entropy: Tensor, mask: Tensor) -> Tensor:
    """The same vector for a supervised step: tokens, loss and entropy; the rest is zero."""
    vector = torch.zeros(len(SUMS) + 1, dtype=torch.float64, device=mask.device)
    vector[:3] = torch.stack([mask.sum(), loss, (entropy * mask).sum()])
    return vector


def over_ranks(vectors: list[Tensor], *, counts: bool, device: torch.device) -> dict[str, float]:
    """Sum over this rank's micro-batches and over the world; the same on every rank.

    Args:
        counts: this rank's numbers count: it holds the logits (last pipeline stage) and is not a tensor-parallel copy.
    """
    empty = torch.zeros(len(SUMS) + 1, dtype=torch.float64, device=device)
    own = torch.stack(vectors) if counts and vectors else empty[None]
    local = torch.cat([own[:, :-1].sum(0), own[:, -1].max()[None]])
    gathered = [torch.empty_like(local) for _ in range(dist.get_world_size())]
    dist.all_gather(gathered, local)
    ranks = torch.stack(gathered)
    return dict(zip((*SUMS, MAX), [*ranks[:, :-1].sum(0).tolist(), ranks[:, -1].max().item()], strict=True))


def policy_metrics(total: dict[str, float], optimizer_steps: int, algorithm: AlgorithmConfig) -> dict[str, float]:
    """Metrics of a train step from its sums, those of the terms in use; docs in `observe.metrics`."""
    tokens, gap_tokens = max(1.0, total["tokens"]), max(1.0, total["gap_tokens"])
    metrics = {
        "loss": total["loss"] / max(1, optimizer_steps),
        "entropy": total["entropy"] / tokens,
        "clip_fraction": total["clipped"] / tokens,
        "ratio_mean": total["ratio"] / tokens,
        "importance_std": math.sqrt(max(0.0, total["weight_squared"] / tokens - (total["weight"] / tokens) ** 2)),
        "ess": total["weight"] ** 2 / (tokens * total["weight_squared"]) if total["weight_squared"] else 1.0,
        "mismatch_mean_abs": total["gap"] / gap_tokens,
        "mismatch_max_abs": total[MAX],
        "mismatch_kl": total["gap_kl"] / gap_tokens,
    }
    if algorithm.correction != "none":
        metrics["correction_fraction"] = total["corrected"] / tokens
    if algorithm.kl_coef:
        metrics["reference_kl"] = total["kl_reference"] / tokens
    return metrics
