"""Forward passes before the first update of a train step: what they add to its micro-batches.

    decoupled:  log-probs under the weights of now = pi_old ─► rho = pi_old/pi_rollout ─► factors, masks, token weights
    kl_coef:    log-probs under the starting weights = the reference

Each is one pass over the micro-batches of *all* optimizer steps, in the very shapes that are trained on: so in the
first optimizer step r = pi/pi_old is exactly 1. The default (bypass, no KL) makes none.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import islice
from typing import Any

import torch.distributed as dist
from torch import Tensor

from siri_megatron.config import AlgorithmConfig
from siri_megatron.learner.batch import Batch
from siri_megatron.learner.correction import Corrected, correct, corrected_weights
from siri_megatron.learner.losses import POLICY_LOSSES
from siri_megatron.learner.reference import Reference
from siri_megatron.learner.schedule import Objective

Columns = dict[str, Tensor]
"""Fields of a `Batch` to be replaced."""
Forward = Callable[[Objective], list[Any]]
"""A pass over all micro-batches of the train step -> what the objective kept of each; empty where no logits are."""


def columns_before(algorithm: AlgorithmConfig, counts: Sequence[int], forward: Forward, reference: Reference | None,
                   group: dist.ProcessGroup) -> list[list[Columns]]:
    """Make the passes that the algorithm asks for. Collective.

    Args:
        counts: micro-batches of this rank in each optimizer step.
        reference: the starting weights; None without a KL term.
        group: the data-parallel ranks.

    Returns:
        for each optimizer step and micro-batch the fields to replace; all empty on ranks without logits.
    """
    found: list[Columns] = [{} for _ in range(sum(counts))]
    if counts and algorithm.old_logprobs == "decoupled":
        kept = forward(lambda batch, logprobs, _: (logprobs.sum(), _old_policy(batch, logprobs, algorithm)))
        for columns, (old_logprobs, _) in zip(found, kept, strict=False):
            columns["old_logprobs"] = old_logprobs
        if kept and algorithm.correction != "none":
            _add_correction(found, _by_step([corrected for _, corrected in kept], counts), algorithm, group)
    if counts and reference:
        with reference.swapped_in():
            kept = forward(lambda _, logprobs, __: (logprobs.sum(), logprobs))
        for columns, logprobs in zip(found, kept, strict=False):
            columns["reference_logprobs"] = logprobs
    return _by_step(found, counts)


def _old_policy(batch: Batch, logprobs: Tensor, algorithm: AlgorithmConfig) -> tuple[Tensor, Corrected | None]:
    if algorithm.correction == "none":
        return logprobs, None
    log_rho = (logprobs - batch.rollout_logprobs) * batch.mask
    return logprobs, correct(log_rho, batch.weights, batch.by_sample(batch.mask), algorithm)


def _add_correction(found: list[Columns], steps: list[list[Corrected]], algorithm: AlgorithmConfig,
                    group: dist.ProcessGroup) -> None:
    weights = corrected_weights(steps, POLICY_LOSSES[algorithm.loss].aggregation, group)
    every = ((one, own) for step, of_step in zip(steps, weights, strict=True)
             for one, own in zip(step, of_step, strict=True))
    for columns, (one, own) in zip(found, every, strict=True):
        columns |= {"correction": one.factor, "corrected": one.at_work, "weights": own}


def _by_step(items: list[Any], counts: Sequence[int]) -> list[list[Any]]:
    rest = iter(items)
    return [list(islice(rest, count)) for count in counts]
