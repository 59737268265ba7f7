"""Every entry of the loss table against its formula written out, and the KL estimators against exact expectations."""

from __future__ import annotations

import math
from typing import Any, get_args

import pytest
import torch

from siri_megatron.config import AlgorithmConfig
from siri_megatron.learner.correction import RULES, Band, reject
from siri_megatron.learner.losses import (
    KL_ESTIMATORS,
    POLICY_LOSSES,
    Clip,
    Samples,
    negative_log_likelihood,
    sequence_clip,
    token_clip,
    weight_clip,
)

CASES = [  # ratio, advantage, loss, gradient with respect to the new log-prob
    (1.0, 2.0, -2.0, -2.0), (1.1, 2.0, -2.2, -2.2), (1.5, 2.0, -2.56, 0.0), (0.5, 2.0, -1.0, -1.0),
    (1.0, -1.0, 1.0, 1.0), (1.5, -1.0, 1.5, 1.5), (0.5, -1.0, 0.8, 0.0), (1.5, 0.0, 0.0, 0.0)]


SEGMENT = torch.tensor([[0, 0, 1, 0, 0, 0, 2, 2], [3, 3, 3, 3, 3, 0, 0, 0]])
COUNTS = torch.tensor([[1.0, 1, 1, 0, 0, 0, 1, 1], [1, 0, 1, 1, 1, 0, 0, 0]])
SAMPLES = Samples(SEGMENT, COUNTS, 4)


@pytest.mark.parametrize(("ratio", "advantage", "loss", "gradient"), CASES)
def test_token_clip(ratio: float, advantage: float, loss: float, gradient: float) -> None:
    """Clipped only where that lowers the objective: a good token cannot become too likely, nor a bad one too rare."""
    new = torch.tensor([[-1.0 + math.log(ratio)]], requires_grad=True)
    found, clipped = token_clip(new, torch.tensor([[-1.0]]), torch.tensor([[advantage]]), Clip(0.2, 0.28), SAMPLES)
    found.sum().backward()
    assert found.item() == pytest.approx(loss, rel=1e-6)
    assert new.grad is not None
    assert new.grad.item() == pytest.approx(gradient, rel=1e-6)
    assert bool(clipped) == (gradient == 0 and advantage != 0)


def tensors() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    new, old = (torch.randn(2, 8, generator=generator) * 0.3 - 1 for _ in range(2))
    return new.requires_grad_(), old, torch.tensor([0.7, -1.3, 1.1, -0.4])[SEGMENT]


def test_sequence_clip() -> None:
    """GSPO sample by sample: one ratio, of the tokens that count; its gradient is spread over them evenly."""
    clip = Clip(0.05, 0.08)
    new, old, advantages = tensors()
    found, clipped = sequence_clip(new, old, advantages, clip, SAMPLES)
    (found * COUNTS).sum().backward()
    own = new.detach().clone().requires_grad_()
    total, hit = torch.zeros(()), []
    for number in range(4):
        at = (number == SEGMENT) & (COUNTS > 0)
        s, a = (own - old)[at].mean().exp(), advantages[at][0]
        total = total - at.sum() * torch.min(s * a, s.clamp(0.95, 1.08) * a)
        hit.append(bool((s > 1.08 and a > 0) or (s < 0.95 and a < 0)))
        assert clipped[at].tolist() == [hit[-1]] * int(at.sum())
    total.backward()
    assert (found * COUNTS).sum().item() == pytest.approx(total.item(), rel=1e-6)
    torch.testing.assert_close(new.grad, own.grad)
    assert 0 < sum(hit) < 4, "the case must have both"


def test_weight_clip() -> None:
    """CISPO: the gradient of every token is minus its clipped ratio times its advantage, also where it is clipped."""
    new, old, advantages = tensors()
    found, clipped = weight_clip(new, old, advantages, Clip(0.2, 0.28), SAMPLES)
    found.sum().backward()
    ratio = (new - old).exp().detach()
    for at in range(16):
        r, a = ratio.flatten()[at].item(), advantages.flatten()[at].item()
        weight = min(max(r, 0.8), 1.28)
        assert new.grad is not None
        assert new.grad.flatten()[at].item() == pytest.approx(-weight * a, rel=1e-6)
        assert found.flatten()[at].item() == pytest.approx(-weight * a * new.flatten()[at].item(), rel=1e-5)
        assert bool(clipped.flatten()[at]) == (weight != r)
    assert 0 < clipped.sum() < 16


def test_the_table_is_the_choice_of_the_config() -> None:
    choices = {name: get_args(AlgorithmConfig.model_fields[name].annotation)
               for name in ("loss", "kl_estimator", "correction")}
    assert set(choices["loss"]) == set(POLICY_LOSSES)
    assert set(choices["kl_estimator"]) == set(KL_ESTIMATORS)
    assert set(choices["correction"]) == {"none", *RULES}


@pytest.mark.parametrize(("keys", "low", "high"), [
    ({}, 0.2, 0.28), ({"loss": "dr_grpo"}, 0.2, 0.2), ({"loss": "gspo"}, 3e-4, 4e-4), ({"loss": "cispo"}, 1.0, 4.0),
    ({"loss": "gspo", "clip_high": 0.1}, 3e-4, 0.1), ({"clip_low": 0.1}, 0.1, 0.28)])
def test_an_unset_bound_is_the_losss_own(keys: dict[str, Any], low: float, high: float) -> None:
    algorithm = AlgorithmConfig(**keys)
    assert POLICY_LOSSES[algorithm.loss].clip_of(algorithm) == Clip(low, high)


def categorical() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return (torch.randn(11, generator=generator, dtype=torch.float64).requires_grad_(),
            torch.randn(11, generator=generator, dtype=torch.float64).log_softmax(-1))


def exact_kl(logits: torch.Tensor, reference: torch.Tensor) -> torch.Tensor:
    logs = logits.log_softmax(-1)
    return (logs.exp() * (logs - reference)).sum()


@pytest.mark.parametrize(("name", "unbiased"), [("k1", True), ("k2", False), ("k3", True)])
def test_kl_estimators_in_expectation(name: str, unbiased: bool) -> None:
    """Summed over all outcomes instead of sampled: k1 and k3 are unbiased."""
    logits, reference = categorical()
    logs = logits.detach().log_softmax(-1)
    found = (logs.exp() * KL_ESTIMATORS[name](logs, reference)).sum().item()
    assert (found == pytest.approx(exact_kl(logits, reference).item(), rel=1e-9)) == unbiased
    assert name == "k1" or KL_ESTIMATORS[name](logs, reference).min() >= 0


@pytest.mark.parametrize("name", KL_ESTIMATORS)
def test_kl_gradients_in_expectation(name: str) -> None:
    """Tokens sampled from the policy, differentiated as a loss: of nothing (k1), KL(pi || ref), KL(ref || pi)."""
    logits, reference = categorical()
    logs = logits.log_softmax(-1)
    (gradient,) = torch.autograd.grad((logs.detach().exp() * KL_ESTIMATORS[name](logs, reference)).sum(), logits)
    wanted = {"k1": 0 * logits.sum(), "k2": exact_kl(logits, reference),
              "k3": (reference.exp() * (reference - logits.log_softmax(-1))).sum()}[name]
    torch.testing.assert_close(gradient, torch.autograd.grad(wanted, logits)[0], rtol=1e-9, atol=1e-12)


def test_a_vetoed_token_rejects_its_sample() -> None:
    """Geometric mean within the band, but one token that the learner calls impossible (rho below 1e-6)."""
    log_rho = torch.zeros(2, 8)
    log_rho[1, 2], log_rho[0, 0], log_rho[0, 3] = -13.9, -13.7, -20.0  # below 1e-6; just above it; counts nowhere
    factor, stays, _ = reject(log_rho, SAMPLES, Band(1e-5, 2.0))
    assert factor.min() == 1.0
    assert [bool(stays[number == SEGMENT][0]) for number in range(4)] == [True, True, True, False]
    assert not reject(log_rho, SAMPLES, Band(0.9, 2.0))[1][0, 0], "sample 0 leaves a band around its mean"


def test_negative_log_likelihood() -> None:
    assert torch.equal(negative_log_likelihood(torch.tensor([-1.0, -2.0])), torch.tensor([1.0, 2.0]))
