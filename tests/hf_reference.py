"""Hugging Face transformers as the oracle: log-probs and greedy continuations, computed in one plain pass."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, PreTrainedModel


def randomised(model_dir: Path, seed: int) -> PreTrainedModel:
    """The model of `model_dir` with new random matrices, biases and norms."""
    model = AutoModelForCausalLM.from_pretrained(model_dir, dtype=torch.float32)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.08)
    return model


@torch.no_grad()
def logprobs(model: PreTrainedModel, prompt: Sequence[int], response: Sequence[int],
             temperature: float = 1.0) -> torch.Tensor:
    """Log-prob of each response token under softmax(logits / temperature)."""
    ids = torch.tensor([[*prompt, *response]])
    table = (model(ids).logits[0].double() / temperature).log_softmax(-1)
    places = torch.arange(len(response)) + len(prompt) - 1
    return table[places, torch.tensor(list(response))]


@torch.no_grad()
def greedy(model: PreTrainedModel, prompt: Sequence[int], count: int) -> list[int]:
    """The `count` most likely tokens, one after the other, each from a full forward pass."""
    ids = list(prompt)
    for _ in range(count):
        ids.append(int(model(torch.tensor([ids])).logits[0, -1].argmax()))
    return ids[len(prompt):]
