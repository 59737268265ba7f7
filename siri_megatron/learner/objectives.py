"""What a pass over a micro-batch computes from log-probs and entropy: a loss, and what to keep for the metrics."""

from __future__ import annotations

import torch
from torch import Tensor

from siri_megatron.config import AlgorithmConfig
from siri_megatron.learner import statistics
from siri_megatron.learner.batch import Batch
from siri_megatron.learner.losses import KL_ESTIMATORS, POLICY_LOSSES, Clip, Samples, negative_log_likelihood
from siri_megatron.learner.schedule import Objective


def policy_objective(algorithm: AlgorithmConfig, clip: Clip, *, first: bool, entropy_weight: float) -> Objective:
    """The policy loss of a train step: see `learner.losses`.

    Args:
        clip: range of the ratio in this step.
        first: its first optimizer step, whose weights are those of the engines.
        entropy_weight: weight of the entropy bonus in this step.
    """
    chosen = POLICY_LOSSES[algorithm.loss]
    kl = KL_ESTIMATORS[algorithm.kl_estimator]

    def objective(batch: Batch, logprobs: Tensor, entropy: Tensor) -> tuple[Tensor, Tensor]:
        tokens, clipped = chosen.surrogate(logprobs, batch.old_logprobs, batch.advantages, clip, counted(batch))
        if batch.correction is not None:
            tokens = tokens * batch.correction
        divergence = None
        if batch.reference_logprobs is not None:
            # Elsewhere no estimate: exp of any difference may be infinite, and a weight of 0 makes it NaN.
            divergence = kl(logprobs, torch.where(batch.mask > 0, batch.reference_logprobs, logprobs))
            tokens = tokens + algorithm.kl_coef * divergence
        if entropy_weight:
            tokens = tokens - entropy_weight * entropy
        loss = (tokens * batch.weights).sum()
        return loss, statistics.policy_statistics(loss, logprobs, entropy, clipped, divergence, batch, first=first,
                                                  decoupled=algorithm.old_logprobs == "decoupled")
    return objective


def counted(batch: Batch) -> Samples:
    """The response tokens that are in the loss, by sample (a masked token has weight 0)."""
    return batch.by_sample((batch.weights > 0).to(batch.mask.dtype))


def supervised_objective(batch: Batch, logprobs: Tensor, entropy: Tensor) -> tuple[Tensor, Tensor]:
    """Weighted negative log-likelihood."""
    loss = (negative_log_likelihood(logprobs) * batch.weights).sum()
    return loss, statistics.likelihood_statistics(loss, entropy, batch.mask)


def keep_logprobs(batch: Batch, logprobs: Tensor, _: Tensor) -> tuple[Tensor, Tensor]:
    """No loss: the log-probs of the response tokens are what is wanted, on every context-parallel rank all of them."""
    return logprobs.sum(), batch.whole(logprobs)[batch.whole(batch.mask).bool()]
