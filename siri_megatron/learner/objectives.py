"""What a pass over a micro-batch computes from log-probs and entropy: a loss, and what to keep for the metrics."""

from __future__ import annotations

from torch import Tensor

from siri_megatron.config import AlgorithmConfig
from siri_megatron.learner import statistics
from siri_megatron.learner.batch import Batch
from siri_megatron.learner.losses import clipped_surrogate, negative_log_likelihood
from siri_megatron.learner.schedule import Objective


def policy_objective(algorithm: AlgorithmConfig, *, first: bool) -> Objective:
    """The policy loss of a train step. first: its first optimizer step, whose weights are those of the engines."""
    def objective(batch: Batch, logprobs: Tensor, entropy: Tensor) -> tuple[Tensor, Tensor]:
        loss, clipped = clipped_surrogate(logprobs, batch.old_logprobs, batch.advantages,
                                          clip_low=algorithm.clip_low, clip_high=algorithm.clip_high)
        loss = (loss * batch.weights).sum()
        return loss, statistics.policy_statistics(loss, logprobs, batch.old_logprobs, entropy, clipped, batch.mask,
                                                  first=first)
    return objective


def supervised_objective(batch: Batch, logprobs: Tensor, entropy: Tensor) -> tuple[Tensor, Tensor]:
    """Weighted negative log-likelihood."""
    loss = (negative_log_likelihood(logprobs) * batch.weights).sum()
    return loss, statistics.likelihood_statistics(loss, entropy, batch.mask)


def keep_logprobs(batch: Batch, logprobs: Tensor, _: Tensor) -> tuple[Tensor, Tensor]:
    """No loss: the log-probs of the response tokens are what is wanted."""
    return logprobs.sum(), logprobs[batch.mask.bool()]
