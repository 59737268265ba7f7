"""What is measured on the tokens of a train step, summed over micro-batches, optimizer steps and ranks.

`ratio` is learner over engine probability of a sampled token. In the first optimizer step the weights are those of the
engines, so there the ratio measures the mismatch of the two implementations (reported as mismatch_*); later it holds
the policy's own movement too.
"""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor

SUMS = ("tokens", "loss", "entropy", "clipped", "ratio", "ratio_squared", "gap", "gap_kl", "gap_tokens")
MAX = "gap_max"


@torch.no_grad()
def policy_statistics(loss: Tensor, logprobs: Tensor, old_logprobs: Tensor, entropy: Tensor, clipped: Tensor,
                      mask: Tensor, *, first: bool) -> Tensor:
    """[len(SUMS) + 1] float64 sums over the masked tokens of a micro-batch, and the largest gap.

    Args:
        loss: [] the micro-batch's share of the loss; the rest: [b, s].
        first: this is the first optimizer step, whose gaps are the mismatch with the engines.
    """
    gap = (logprobs - old_logprobs) * mask
    ratio = gap.exp()
    kl = ratio - 1 - gap  # >= 0, and unbiased for KL(engine || learner) as the tokens are the engine's (Schulman's k3)
    tokens = mask.sum()
    sums = [tokens, loss, (entropy * mask).sum(), (clipped * mask).sum(), (ratio * mask).sum(),
            (ratio.square() * mask).sum(), gap.abs().sum() * first, kl.sum() * first, tokens * first]
    return torch.stack([*sums, gap.abs().max() * first]).double()


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


def policy_metrics(total: dict[str, float], optimizer_steps: int) -> dict[str, float]:
    """Metrics of a train step from its sums; docs in `observe.metrics`."""
    tokens, gap_tokens = max(1.0, total["tokens"]), max(1.0, total["gap_tokens"])
    return {
        "loss": total["loss"] / max(1, optimizer_steps),
        "entropy": total["entropy"] / tokens,
        "clip_fraction": total["clipped"] / tokens,
        "ratio_mean": total["ratio"] / tokens,
        "ess": total["ratio"] ** 2 / (tokens * total["ratio_squared"]) if total["ratio_squared"] else 1.0,
        "mismatch_mean_abs": total["gap"] / gap_tokens,
        "mismatch_max_abs": total[MAX],
        "mismatch_kl": total["gap_kl"] / gap_tokens,
    }
