"""The oracle of a train step: one process, transformers' model, torch's autograd, clipping and AdamW, and the losses
written as the papers print them (means over samples and tokens, no token weights, no micro-batches)."""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

from siri_megatron.batching.lengths import RowLengths
from siri_megatron.batching.plan import StepPlan, plan_step
from siri_megatron.budget.step_budget import StepBudget
from siri_megatron.config import AlgorithmConfig, BatchingConfig, OptimizerConfig

VOCAB = 37
CAP = 40
PROMPT = 9


@dataclass(frozen=True)
class Rows:
    """As much of a ledger step as the learner reads."""

    rollouts: list[Any]

    def rollout(self, row: int) -> Any:
        return self.rollouts[row]

    def tokens(self, row: int) -> tuple[Any, Any, Any]:
        rollout = self.rollouts[row]
        return rollout.prompt_ids, rollout.response_ids, rollout.logprobs


@dataclass
class Expected:
    """What the reference computed."""

    losses: list[float] = field(default_factory=list)
    norms: list[float] = field(default_factory=list)
    gradients: dict[str, np.ndarray] = field(default_factory=dict)
    """Of the first optimizer step, before clipping."""
    weights: dict[str, np.ndarray] = field(default_factory=dict)


def sequences(count: int, seed: int = 0) -> list[tuple[list[int], list[int]]]:
    """Random (prompt, response) pairs of uneven lengths, the shortest responses of one token."""
    rng = random.Random(seed)

    def tokens(longest: int) -> list[int]:
        return [rng.randrange(VOCAB) for _ in range(rng.randint(1, longest))]
    return [(tokens(PROMPT), tokens(CAP)) for _ in range(count)]


def rollouts(groups: int, size: int, model: Any, temperature: float, seed: int = 0) -> Rows:
    """Rollouts whose old log-probs lie around the model's own, so that some ratios are clipped and most are not."""
    rng = np.random.default_rng(seed)
    rows = []
    for number, (prompt, response) in enumerate(sequences(groups * size, seed)):
        with torch.no_grad():
            own = hf_logprobs(model, prompt, response, temperature).numpy()
        rows.append(SimpleNamespace(
            group=number // size, prompt_ids=prompt, response_ids=response, reward=float(number % size < size // 2),
            logprobs=(own + rng.normal(0, 0.2, len(own))).astype(np.float32).tolist()))
    return Rows(rows)


def plan(rows: Rows, algorithm: AlgorithmConfig, batching: BatchingConfig, *, dp: int, multiple: int) -> StepPlan:
    """The plan of a step with these rollouts."""
    def column(read: Any) -> np.ndarray:
        return np.array([read(row) for row in rows.rollouts])
    lengths = RowLengths(column(lambda row: len(row.prompt_ids)), column(lambda row: len(row.response_ids)),
                         column(lambda row: row.group), column(lambda row: row.reward))
    budget = StepBudget(step=3, cycle=0, phase="compression", cap=CAP, version=1)
    return plan_step(lengths, budget, algorithm, batching, dp=dp, multiple=multiple, l_max=CAP, max_prompt=PROMPT)


def hf_logprobs(model: Any, prompt: list[int], response: list[int], temperature: float) -> torch.Tensor:
    """Log-probs of the response tokens of one sequence, alone in its batch."""
    tokens = torch.tensor([prompt + response])
    logits = model(tokens[:, :-1]).logits[0, len(prompt) - 1:] / temperature
    return logits.log_softmax(-1).gather(-1, torch.tensor(response)[:, None])[:, 0]


def train(model: Any, rows: Rows, planned: StepPlan, algorithm: AlgorithmConfig, optimizer: OptimizerConfig,
          temperature: float) -> Expected:
    """The optimizer steps of a plan (which rows each trains on, and their advantages, are taken from it)."""
    expected, adamw = Expected(), torch_adamw(model, optimizer)
    for step in planned.optimizer_steps:
        chosen = sorted(row for rank in step.ranks for micro in rank for row in micro.rows)
        objectives = [_objectives(model, rows.rollout(row), planned.advantages[row], algorithm, temperature)
                      for row in chosen]
        update(model, adamw, aggregate(objectives, algorithm), optimizer, expected)
    expected.weights = {name: value.detach().numpy().copy() for name, value in model.named_parameters()}
    return expected


def update(model: Any, adamw: torch.optim.Optimizer, loss: torch.Tensor, optimizer: OptimizerConfig,
           expected: Expected) -> None:
    """One optimizer step."""
    adamw.zero_grad()
    loss.backward()
    expected.losses.append(loss.item())
    if not expected.gradients:
        expected.gradients = {name: value.grad.numpy().copy() for name, value in model.named_parameters()}
    expected.norms.append(torch.nn.utils.clip_grad_norm_(model.parameters(), optimizer.clip_grad).item())
    adamw.step()


def torch_adamw(model: Any, optimizer: OptimizerConfig) -> torch.optim.Optimizer:
    """AdamW that spares norms and biases its decay."""
    matrices = [value for value in model.parameters() if value.dim() > 1]
    vectors = [value for value in model.parameters() if value.dim() == 1]
    return torch.optim.AdamW([{"params": matrices, "weight_decay": optimizer.weight_decay},
                              {"params": vectors, "weight_decay": 0.0}],
                             lr=optimizer.lr, betas=optimizer.betas, eps=optimizer.eps)


def aggregate(objectives: list[torch.Tensor], algorithm: AlgorithmConfig) -> torch.Tensor:
    """GRPO: mean over samples of the mean over tokens. DAPO: mean over tokens. Dr.GRPO: sum over N x constant."""
    if algorithm.loss == "grpo":
        return -torch.stack([tokens.mean() for tokens in objectives]).mean()
    if algorithm.loss == "dapo":
        return -torch.cat(objectives).mean()
    return -torch.cat(objectives).sum() / (len(objectives) * CAP)


def _objectives(model: Any, rollout: Any, advantage: float, algorithm: AlgorithmConfig,
                temperature: float) -> torch.Tensor:
    logprobs = hf_logprobs(model, rollout.prompt_ids, rollout.response_ids, temperature)
    ratio = torch.exp(logprobs - torch.tensor(rollout.logprobs))
    clipped = torch.clamp(ratio, 1 - algorithm.clip_low, 1 + algorithm.clip_high)
    return torch.min(ratio * advantage, clipped * advantage)
