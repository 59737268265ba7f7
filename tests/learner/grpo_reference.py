"""The oracle of a train step: one process, transformers' model, torch's autograd, clipping and AdamW, and the losses
written as the papers print them (means over samples and tokens, no token weights, no micro-batches). Sample by sample
in loops; a token that the rollout correction masks is taken out of its list, so it cannot be in any mean."""

from __future__ import annotations

import math
import random
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

from siri_megatron.batching.lengths import RowLengths
from siri_megatron.batching.plan import StepPlan, plan_step
from siri_megatron.budget.method import Method
from siri_megatron.budget.step_budget import StepBudget
from siri_megatron.config import AlgorithmConfig, BatchingConfig, OptimizerConfig

VOCAB = 37
CAP = 40
PROMPT = 9
LR = 1e-3
"""Unless a test says otherwise."""


@dataclass(frozen=True)
class Rows:
    """As much of a ledger step as the learner reads."""

    rollouts: list[Any]

    def rollout(self, row: int) -> Any:
        return self.rollouts[row]

    def tokens(self, row: int) -> tuple[Any, Any, Any]:
        rollout = self.rollouts[row]
        return rollout.prompt_ids, rollout.response_ids, rollout.logprobs

    def forced(self, row: int) -> tuple[int, int]:
        return forced_of(self.rollouts[row])


@dataclass
class Expected:
    """What the reference computed."""

    losses: list[float] = field(default_factory=list)
    kept: int = 0
    """Response tokens that the rollout correction left, over all optimizer steps."""
    norms: list[float] = field(default_factory=list)
    gradients: list[dict[str, np.ndarray]] = field(default_factory=list)
    """Of each optimizer step, before clipping."""
    weights: dict[str, np.ndarray] = field(default_factory=dict)


def forced_of(rollout: Any) -> tuple[int, int]:
    return getattr(rollout, "forced", (0, 0))


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


def lengths(rows: Rows) -> RowLengths:
    """What planning reads of them."""
    def column(read: Any) -> np.ndarray:
        return np.array([read(row) for row in rows.rollouts])
    return RowLengths(column(lambda row: len(row.prompt_ids)), column(lambda row: len(row.response_ids)),
                      column(lambda row: row.group), column(lambda row: row.reward),
                      column(lambda row: forced_of(row)[1] - forced_of(row)[0]))


def plan(rows: Rows, algorithm: AlgorithmConfig, batching: BatchingConfig, *, dp: int, multiple: int,
         cp: int = 1, lr: float = LR, most_groups: int | None = None) -> StepPlan:
    """The plan of a step with these rollouts, and with the method that the algorithm and the learning rate give."""
    budget = StepBudget(step=3, cycle=0, phase="compression", cap=CAP, version=1)
    method = Method.of(algorithm, OptimizerConfig(lr=lr))
    return plan_step(lengths(rows), budget, algorithm, batching, method=method, dp=dp, multiple=multiple, cp=cp,
                     l_max=CAP, max_prompt=PROMPT, most_groups=most_groups)


def hf_logprobs(model: Any, prompt: list[int], response: list[int], temperature: float) -> torch.Tensor:
    """Log-probs of the response tokens of one sequence, alone in its batch."""
    return hf_scores(model, prompt, response, temperature)[0]


def hf_scores(model: Any, prompt: list[int], response: list[int], temperature: float
              ) -> tuple[torch.Tensor, torch.Tensor]:
    """(log-probs, entropies) of the response tokens of one sequence, alone in its batch."""
    tokens = torch.tensor([prompt + response])
    logs = (model(tokens[:, :-1]).logits[0, len(prompt) - 1:] / temperature).log_softmax(-1)
    return logs.gather(-1, torch.tensor(response)[:, None])[:, 0], -(logs.exp() * logs).sum(-1)


def train(model: Any, rows: Rows, planned: StepPlan, algorithm: AlgorithmConfig, optimizer: OptimizerConfig,
          temperature: float, *, reference: Any = None, adamw: Any = None) -> Expected:
    """The optimizer steps of a plan (which rows each trains on, and their advantages, are taken from it).

    reference: the model of the KL term. The entropy bonus has weight algorithm.entropy_coef.
    adamw: goes on from an earlier step; optimizer.lr holds from the next update on.
    """
    expected, adamw = Expected(), adamw or torch_adamw(model, optimizer)
    for group in adamw.param_groups:
        group["lr"] = optimizer.lr
    steps = [sorted(row for rank in step.ranks for micro in rank for row in micro.rows)
             for step in planned.optimizer_steps]
    tokens = {row: before_training(model, reference, rows.rollout(row), algorithm, temperature)
              for chosen in steps for row in chosen}
    for chosen in steps:
        objectives = [_objectives(model, rows.rollout(row), tokens[row], planned.advantages[row], algorithm,
                                  temperature) for row in chosen]
        expected.kept += sum(len(one) for one in objectives)
        update(model, adamw, aggregate([one for one in objectives if len(one)], algorithm), optimizer, expected)
    expected.weights = {name: value.detach().numpy().copy() for name, value in model.named_parameters()}
    return expected


@dataclass(frozen=True)
class Before:
    """What is known of a rollout's tokens before the first update, [tokens] each."""

    old: torch.Tensor
    factor: torch.Tensor
    kept: torch.Tensor
    reference: torch.Tensor | None


@torch.no_grad()
def before_training(model: Any, reference: Any, rollout: Any, algorithm: AlgorithmConfig,
                    temperature: float) -> Before:
    """Old policy, correction and reference of one rollout; forced tokens are as good as not there."""
    engine, (start, end) = torch.tensor(rollout.logprobs), forced_of(rollout)
    sequence = (rollout.prompt_ids, rollout.response_ids, temperature)
    old = hf_logprobs(model, *sequence) if algorithm.old_logprobs == "decoupled" else engine
    gaps = (old - engine).tolist()
    factor, kept = corrected(gaps[:start] + gaps[end:], algorithm)
    forced = end - start
    return Before(old, torch.tensor(factor[:start] + [0.0] * forced + factor[start:]),
                  torch.tensor(kept[:start] + [False] * forced + kept[start:]),
                  hf_logprobs(reference, *sequence) if reference else None)


def corrected(log_rho: list[float], algorithm: AlgorithmConfig) -> tuple[list[float], list[bool]]:
    """(factor, kept) of each token of one sample; the bounds must be given in the config."""
    low, high = algorithm.correction_low, algorithm.correction_high
    rho = [math.exp(one) for one in log_rho]
    if algorithm.correction == "tis":
        return [min(one, high) for one in rho], [True] * len(rho)
    if algorithm.correction == "mask":
        return rho, [low <= one <= high for one in rho]
    if algorithm.correction == "sequence":
        mean = math.exp(sum(log_rho) / len(log_rho))
        return [1.0] * len(rho), [low <= mean <= high and min(rho) >= 1e-6] * len(rho)
    return [1.0] * len(rho), [True] * len(rho)


def update(model: Any, adamw: torch.optim.Optimizer, loss: torch.Tensor, optimizer: OptimizerConfig,
           expected: Expected) -> None:
    """One optimizer step."""
    adamw.zero_grad()
    loss.backward()
    expected.losses.append(loss.item())
    expected.gradients.append({name: value.grad.numpy().copy() for name, value in model.named_parameters()})
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
    """GRPO, GSPO: mean over samples of the mean over tokens. DAPO, CISPO: mean over tokens. Dr.GRPO: sum/(N c)."""
    if algorithm.loss in ("grpo", "gspo"):
        return -torch.stack([tokens.mean() for tokens in objectives]).mean()
    if algorithm.loss in ("dapo", "cispo"):
        return -torch.cat(objectives).mean()
    return -torch.cat(objectives).sum() / (len(objectives) * CAP)


CLIPS = {"grpo": (0.2, 0.28), "dapo": (0.2, 0.28), "dr_grpo": (0.2, 0.2), "gspo": (3e-4, 4e-4), "cispo": (1.0, 4.0)}


def _objectives(model: Any, rollout: Any, before: Before, advantage: float, algorithm: AlgorithmConfig,
                temperature: float) -> torch.Tensor:
    """Objective (to be maximised) of each token that is kept."""
    logprobs, entropy = hf_scores(model, rollout.prompt_ids, rollout.response_ids, temperature)
    logprobs, entropy, old = logprobs[before.kept], entropy[before.kept], before.old[before.kept]
    objective = before.factor[before.kept] * _surrogate(logprobs, old, advantage, algorithm)
    if before.reference is not None:
        distance = before.reference[before.kept] - logprobs
        kl = {"k1": -distance, "k2": distance ** 2 / 2, "k3": distance.exp() - 1 - distance}[algorithm.kl_estimator]
        objective = objective - algorithm.kl_coef * kl
    return objective + algorithm.entropy_coef * entropy


def _surrogate(logprobs: torch.Tensor, old: torch.Tensor, advantage: float, algorithm: AlgorithmConfig
               ) -> torch.Tensor:
    low, high = (given or own for given, own in zip((algorithm.clip_low, algorithm.clip_high), CLIPS[algorithm.loss],
                                                    strict=True))
    ratio = torch.exp(logprobs - old)
    if algorithm.loss == "gspo" and len(old):
        ratio = torch.exp((logprobs - old).sum() / len(old)).expand(len(old))
    clipped = torch.clamp(ratio, 1 - low, 1 + high)
    if algorithm.loss == "cispo":
        return clipped.detach() * advantage * logprobs
    return torch.min(ratio * advantage, clipped * advantage)
