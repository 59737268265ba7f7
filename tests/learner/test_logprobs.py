"""Vocab-parallel log-probs and entropy against torch's log-softmax over the whole vocabulary."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from ranks import Rank, Ranks

BENCH = Path(__file__).resolve().parents[2] / "tools" / "bench" / "logprobs.py"
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


def shares(rank: Rank, scale: float, temperature: float, forget_padding: bool, chunk: int = 1 << 20,
           entropy_weight: float = 0.0) -> dict[str, Any]:
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
                                           vocab=VOCAB + forget_padding, group=dist.group.WORLD, chunk=chunk)
        loss = (logprobs * weights).sum()
        if entropy_weight:
            loss = loss + entropy_weight * (entropy * weights.flip(-1)).sum()
        loss.backward()
        dist.destroy_process_group()
        assert torch.equal(own.detach(), before), "the logits were changed in place"
        return {"logprobs": logprobs.detach(), "entropy": entropy.detach(), "grad": own.grad}


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


@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_gradient_of_the_entropy(ranks: Ranks, temperature: float) -> None:
    """Beside that of the log-probs, and alone."""
    found = ranks.run(shares, 3.0, temperature, False, 60, 0.5)
    logits, labels, weights = case(3.0)
    logits.requires_grad_()
    logprobs, entropy = whole(logits, labels, temperature)
    ((logprobs * weights).sum() + 0.5 * (entropy * weights.flip(-1)).sum()).backward()
    gradient = torch.cat([answer["grad"] for answer in found], -1)
    torch.testing.assert_close(gradient[..., :VOCAB], logits.grad, rtol=1e-5, atol=2e-6)
    assert gradient[..., VOCAB:].abs().max() == 0
    alone = ranks.run(shares, 3.0, temperature, False, 60)
    assert (torch.cat([answer["grad"] for answer in alone], -1)[..., :VOCAB] - logits.grad).abs().max() > 0.01


@pytest.mark.parametrize("chunk", [1, 50, 19 * 7, 19 * 22])
def test_chunks_change_nothing(ranks: Ranks, chunk: int) -> None:
    """To the bit: one token at a time, a few, and a last chunk that is not full."""
    whole, cut = (ranks.run(shares, 3.0, 0.6, False, size, 0.5) for size in (1 << 20, chunk))
    for one, other in zip(whole, cut, strict=True):
        assert all(torch.equal(one[name], other[name]) for name in ("logprobs", "entropy", "grad"))


def test_peak_memory_is_that_of_a_chunk() -> None:
    """2048 tokens x 16K columns in bf16: logits and gradient take 64 MiB each, every float32 copy of all tokens 128."""
    whole, cut = (peak_mib(2048, 16384, chunk) for chunk in (1 << 40, 1 << 20))
    assert cut < 170 < 250 < whole


def peak_mib(*size: int) -> float:
    command = [sys.executable, str(BENCH), "--one", *map(str, size)]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True, timeout=60).stdout)["mib"]


def test_padding_taken_for_a_token_would_be_seen(ranks: Ranks) -> None:
    found = ranks.run(shares, 1.0, 1.0, True)[0]
    logits, labels, _ = case(1.0)
    assert (found["logprobs"] - whole(logits, labels, 1.0)[0]).abs().max() > 0.01
