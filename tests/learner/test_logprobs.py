"""Vocab-parallel log-probs and entropy against torch's log-softmax over the whole vocabulary."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from ranks import Rank, Ranks

VOCAB = 37  # padded to 38 on two ranks


def whole(logits: torch.Tensor, labels: torch.Tensor, temperature: float) -> tuple[torch.Tensor, torch.Tensor]:
    logs = (logits / temperature).log_softmax(-1)
    return logs.gather(-1, labels.unsqueeze(-1)).squeeze(-1), -(logs.exp() * logs).sum(-1)


def case(scale: float) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 11, VOCAB, generator=generator) * scale
    labels = torch.randint(VOCAB, (2, 11), generator=generator)
    labels[0, :3] = torch.tensor([0, 18, 36])  # first, last column of rank 0's shard, last real one of rank 1's
    return logits, labels, torch.randn(2, 11, generator=generator)


def shares(rank: Rank, scale: float, temperature: float, forget_padding: bool) -> dict[str, Any]:
    import torch.distributed as dist

    from siri_megatron.learner.logprobs import token_logprobs
    from siri_megatron.learner.settings import LearnerConfig
    with rank.control(LearnerConfig(tp=2)) as control:
        dist.init_process_group("gloo", store=control.store(), rank=rank.rank, world_size=2)
        logits, labels, weights = case(scale)
        padded = torch.nn.functional.pad(logits, (0, 1), value=3.0)  # a wrong logit in the padding
        own = padded.chunk(2, -1)[rank.rank].clone().requires_grad_()
        before = own.detach().clone()
        logprobs, entropy = token_logprobs(own, labels, temperature=temperature,
                                           vocab=VOCAB + forget_padding, group=dist.group.WORLD)
        (logprobs * weights).sum().backward()
        dist.destroy_process_group()
        assert torch.equal(own.detach(), before), "the logits were changed in place"
        return {"logprobs": logprobs.detach(), "entropy": entropy, "grad": own.grad}


@pytest.mark.parametrize(("scale", "temperature"), [(1.0, 1.0), (3.0, 0.6), (200.0, 1.0)])
def test_logprobs_entropy_and_gradient(ranks: Ranks, scale: float, temperature: float) -> None:
    found = ranks.run(shares, scale, temperature, False)
    logits, labels, weights = case(scale)
    logits.requires_grad_()
    logprobs, entropy = whole(logits, labels, temperature)
    (logprobs * weights).sum().backward()
    gradient = torch.cat([answer["grad"] for answer in found], -1)
    for answer in found:
        torch.testing.assert_close(answer["logprobs"], logprobs.detach(), rtol=1e-6, atol=2e-6 * scale)
        torch.testing.assert_close(answer["entropy"], entropy.detach(), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(gradient[..., :VOCAB], logits.grad, rtol=1e-5, atol=1e-6)
    assert gradient[..., VOCAB:].abs().max() == 0, "padding has a gradient"


def test_padding_taken_for_a_token_would_be_seen(ranks: Ranks) -> None:
    found = ranks.run(shares, 1.0, 1.0, True)[0]
    logits, labels, _ = case(1.0)
    assert (found["logprobs"] - whole(logits, labels, 1.0)[0]).abs().max() > 0.01
