"""The clipped surrogate against the formula written out case by case."""

from __future__ import annotations

import math

import pytest
import torch

from siri_megatron.learner.losses import clipped_surrogate, negative_log_likelihood

CASES = [  # ratio, advantage, loss, gradient with respect to the new log-prob
    (1.0, 2.0, -2.0, -2.0), (1.1, 2.0, -2.2, -2.2), (1.5, 2.0, -2.56, 0.0), (0.5, 2.0, -1.0, -1.0),
    (1.0, -1.0, 1.0, 1.0), (1.5, -1.0, 1.5, 1.5), (0.5, -1.0, 0.8, 0.0), (1.5, 0.0, 0.0, 0.0)]


@pytest.mark.parametrize(("ratio", "advantage", "loss", "gradient"), CASES)
def test_clipped_surrogate(ratio: float, advantage: float, loss: float, gradient: float) -> None:
    """Clipped only where that lowers the objective: a good token cannot become too likely, nor a bad one too rare."""
    new = torch.tensor(-1.0 + math.log(ratio), requires_grad=True)
    found, clipped = clipped_surrogate(new, torch.tensor(-1.0), torch.tensor(advantage), clip_low=0.2, clip_high=0.28)
    found.backward()
    assert found.item() == pytest.approx(loss, rel=1e-6)
    assert new.grad is not None
    assert new.grad.item() == pytest.approx(gradient, rel=1e-6)
    assert bool(clipped) == (gradient == 0 and advantage != 0)


def test_negative_log_likelihood() -> None:
    assert torch.equal(negative_log_likelihood(torch.tensor([-1.0, -2.0])), torch.tensor([1.0, 2.0]))
