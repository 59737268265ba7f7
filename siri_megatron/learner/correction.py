"""Correction of the gap between the engines and the learner: rho = pi_old/pi_rollout of each sampled token. Pure.

Where the old log-probs are recomputed (decoupled), the ratio of the loss is r = pi/pi_old and rho stands apart: as a
detached factor of the surrogate, or as a mask. Tokens that are masked leave the loss *and its denominator*.

Invariants:
- denominator_without_masked_tokens: token weights are those that the planner would give if the masked tokens did not
  exist (and samples that are masked altogether neither); they add up to what they would.
- sharding_changes_nothing: the counts are exchanged over ranks and micro-batches before the first backward.
- nothing_masked_changes_nothing: then the weights are the planner's, to the bit.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
import torch.distributed as dist
from torch import Tensor

from siri_megatron.config import AlgorithmConfig
from siri_megatron.learner.losses import Aggregation, Samples, token_weight

VETO = 1e-6
"""A sample with a token whose rho is below this is rejected whole: the learner calls it impossible (slime's veto)."""


@dataclass(frozen=True)
class Band:
    """Range of rho."""

    low: float
    high: float


@dataclass(frozen=True)
class Corrected:
    """What a correction makes of a micro-batch."""

    factor: Tensor
    """[b, s] weight of each token's surrogate beside its share of the mean."""
    at_work: Tensor
    """[b, s] bool: the factor is cut, or the token masked."""
    planned: Tensor
    """[b, s] token weights of the planner."""
    before: Samples
    """`counts`: 1.0 for every response token."""
    after: Samples
    """`counts`: 1.0 for those that stay."""


Rule = Callable[[Tensor, Samples, Band], tuple[Tensor, Tensor, Tensor]]
"""(log rho, samples, band) -> (factor, bool: stays, bool: at work)"""


def cut(log_rho: Tensor, _: Samples, band: Band) -> tuple[Tensor, Tensor, Tensor]:
    """Token TIS: factor min(rho, high), every token stays (Yao et al., "Off-policy RL", 2025)."""
    rho = log_rho.exp()
    return rho.clamp(max=band.high), torch.ones_like(rho, dtype=torch.bool), rho > band.high


def mask(log_rho: Tensor, _: Samples, band: Band) -> tuple[Tensor, Tensor, Tensor]:
    """Token band: factor rho within the band, weight 0 outside (IcePop; MIS, Liu et al. 2025)."""
    rho = log_rho.exp()
    stays = (rho >= band.low) & (rho <= band.high)
    return torch.where(stays, rho, 0.0), stays, ~stays


def reject(log_rho: Tensor, samples: Samples, band: Band) -> tuple[Tensor, Tensor, Tensor]:
    """Sample rejection: factor 1 where the geometric mean of rho lies in the band and no token's is below VETO.

    The mean and not the product: the product's spread grows with the length, so that with a moving cap the share that
    is rejected would follow the cap (verl's geometric rejection; its band for it is 0.999 to 1.001).
    """
    mean = samples.mean(log_rho).exp()
    vetoed = samples.sum((log_rho.exp() < VETO).to(log_rho.dtype)) > 0
    stays = (mean >= band.low) & (mean <= band.high) & ~vetoed
    return torch.ones_like(log_rho), stays, ~stays


RULES: dict[str, tuple[Rule, Band]] = {
    "tis": (cut, Band(0.0, 2.0)), "mask": (mask, Band(0.5, 5.0)), "sequence": (reject, Band(0.999, 1.001))}
"""`algorithm.correction`, with the band where correction_low and correction_high are None."""


def correct(log_rho: Tensor, planned: Tensor, samples: Samples, algorithm: AlgorithmConfig) -> Corrected:
    """Apply `algorithm.correction` (not none) to a micro-batch.

    Args:
        log_rho: [b, s] learner minus engine log-probs.
        planned: [b, s] token weights of the planner.
    """
    rule, own = RULES[algorithm.correction]
    band = Band(own.low if algorithm.correction_low is None else algorithm.correction_low,
                own.high if algorithm.correction_high is None else algorithm.correction_high)
    factor, stays, at_work = rule(log_rho, samples, band)
    after = replace(samples, counts=samples.counts * stays)
    return Corrected(factor, at_work, planned, samples, after)


def corrected_weights(steps: Sequence[Sequence[Corrected]], aggregation: Aggregation,
                      group: dist.ProcessGroup) -> list[list[Tensor]]:
    """Token weights without the masked tokens. Collective over the data-parallel ranks.

    Args:
        steps: [optimizer step][micro-batch of this rank].
        group: ranks that hold the other micro-batches of the same optimizer steps.

    Returns:
        [b, s] float32 for each micro-batch; all zero in an optimizer step of which no token stays.
    """
    totals = torch.stack([torch.stack([_total([one.before for one in step]), _total([one.after for one in step])])
                          for step in steps])  # [optimizer step, before and after, samples and tokens]
    dist.all_reduce(totals, group=group)
    return [[_weights(one, aggregation, *total) for one in step]
            for step, total in zip(steps, totals.clamp(min=1), strict=True)]


def _total(parts: Sequence[Samples]) -> Tensor:
    """[2] float64: samples that have tokens, and tokens."""
    own = torch.cat([part.tokens() for part in parts]).double()
    return torch.stack([(own > 0).sum(), own.sum()])


def _weights(one: Corrected, aggregation: Aggregation, before: Tensor, after: Tensor) -> Tensor:
    """The planner's weights times the new share of a token over its old one (exactly 1 where nothing is masked)."""
    new, old = (token_weight(aggregation, part.at_tokens(part.tokens()).double().clamp(min=1), samples=total[0],
                             tokens=total[1], constant=1.0)
                for part, total in ((one.after, after), (one.before, before)))
    return (one.planned.double() * (new / old)).float() * one.after.counts
