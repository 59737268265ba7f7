"""What a pass computes from log-probs: tokens that are not in the loss change neither it nor its gradient."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from siri_megatron.config import AlgorithmConfig
from siri_megatron.learner.batch import Sample, make_batch
from siri_megatron.learner.losses import KL_ESTIMATORS, Clip
from siri_megatron.learner.objectives import policy_objective

OUTSIDE = -200.0
"""A log-prob that a policy which has moved far may give a token that it never samples: of a prompt, or forced."""


@pytest.mark.parametrize("estimator", KL_ESTIMATORS)
def test_what_is_not_in_the_loss_weighs_nothing(estimator: str) -> None:
    """However far apart policy and reference are there: exp of the difference is infinite, and 0 x inf NaN."""
    sample = Sample([1, 2, 3], [4, 5, 6], 0.5, [-1.0, -1.0, -1.0], 1.0, forced=(1, 2))
    batch = make_batch([sample], "packed", 8, "local", torch.device("cpu"))
    batch = replace(batch, reference_logprobs=torch.full((1, 8), -1.5))
    algorithm = AlgorithmConfig(kl_coef=0.1, kl_estimator=estimator)  # type: ignore[arg-type]
    objective = policy_objective(algorithm, Clip(0.2, 0.28), first=True, entropy_weight=0.0)
    found = []
    for outside in (-1.0, OUTSIDE):
        logprobs = torch.where(batch.mask > 0, -0.9, outside).requires_grad_()
        loss, statistics = objective(batch, logprobs, torch.zeros(1, 8))
        loss.backward()
        found.append((loss.item(), logprobs.grad, statistics))
    (near, near_gradient, near_statistics), (far, far_gradient, far_statistics) = found
    assert near == far
    assert torch.equal(near_gradient, far_gradient)  # type: ignore[arg-type]
    assert torch.equal(near_statistics, far_statistics)
