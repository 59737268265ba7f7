"""Steps of the benchmarks: response lengths drawn under a cap, written as a real ledger and read back from it.

Lengths are scaled to the cap and then cut at it, as a cap cuts rollouts: the median is half the cap, so that with
`r1` about a quarter of the responses is truncated.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from siri_megatron.batching.lengths import RowLengths
from siri_megatron.budget.step_budget import StepBudget
from siri_megatron.ledger.read import StepRows, open_step
from siri_megatron.ledger.schema import Rollout
from siri_megatron.ledger.write import StepWriter

SIGMA = 0.93
"""Of the log-normal that fits the output lengths of DeepSeek-R1 requests (ServeGen's traces; median 595 tokens)."""
R1_QUANTILES = (
    74, 127, 162, 178, 198, 215, 230, 243, 255, 268, 280, 291, 302, 314, 325, 337, 350, 363, 375, 384, 398, 412,
    427, 441, 457, 471, 488, 504, 521, 535, 555, 574, 596, 616, 640, 665, 692, 717, 746, 773, 802, 830, 862, 895,
    931, 970, 1008, 1056, 1106, 1148, 1189, 1220, 1281, 1352, 1421, 1500, 1589, 1709, 1873, 2048, 2579, 3599,
    6490, 12760, 24755)
"""Those output lengths, tokens: 65 points of equal mass, from the shortest to the longest (alibaba/ServeGen,
Apache-2.0: data/reason/deepseek-r1, 73 clients' windows weighted equally)."""
DISTRIBUTIONS = ("r1", "uniform", "full")
PROMPT = (16, 32)
"""Shortest and longest prompt, tokens."""
GROUP = 8
"""Samples a prompt."""


@dataclass(frozen=True)
class Step:
    """One step of the ledger and what planning reads of it."""

    budget: StepBudget
    rows: StepRows
    lengths: RowLengths


def response_lengths(distribution: str, cap: int, count: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """[count] tokens. r1: log-normal of the spread above; uniform: 1 to the cap; full: the cap."""
    if distribution == "full":
        return np.full(count, cap)
    if distribution == "uniform":
        return rng.integers(1, cap + 1, count)
    return _cut(np.exp(rng.normal(0, SIGMA, count)), cap)


def quantile_lengths(quantiles: NDArray[np.float64], cap: int, count: int,
                     rng: np.random.Generator) -> NDArray[np.int64]:
    """[count] tokens drawn from measured lengths, scaled so that their median is half the cap."""
    return _cut(rng.choice(quantiles / np.median(quantiles), count), cap)


def measured_lengths(quantiles: NDArray[np.float64], cap: int, count: int,
                     rng: np.random.Generator) -> NDArray[np.int64]:
    """[count] tokens drawn from measured lengths as they are, between the quantiles too, and cut at the cap."""
    drawn = np.interp(rng.random(count), np.linspace(0, 1, len(quantiles)), quantiles)
    return np.clip(np.rint(drawn), 1, cap).astype(np.int64)


def read_quantiles(path: Path) -> NDArray[np.float64]:
    """Lengths from a JSON list, or from the list `quantiles` of a JSON mapping."""
    found = json.loads(path.read_text())
    return np.asarray(found["quantiles"] if isinstance(found, dict) else found, np.float64)


def write_step(root: Path, cap: int, responses: NDArray[np.int64], vocab: int, rng: np.random.Generator) -> Step:
    """A closed ledger step with these responses, in groups of 8 of which half are right; the old log-probs lie around
    those of a randomly initialised model, so that a few ratios are clipped."""
    budget = StepBudget(step=0, cycle=0, phase="compression", cap=cap, version=1)
    writer = StepWriter(root, budget, "benchmark")
    for group, lengths in enumerate(responses.reshape(-1, GROUP)):
        prompt = rng.integers(1, vocab, rng.integers(PROMPT[0], PROMPT[1] + 1)).tolist()
        writer.append([_rollout(budget, group, sample, prompt, int(length), vocab, rng)
                       for sample, length in enumerate(lengths)])
    writer.close()
    rows = open_step(root, budget.step)
    return Step(budget, rows, RowLengths.of(rows))


def _cut(scaled: NDArray[np.float64], cap: int) -> NDArray[np.int64]:
    return np.clip(np.rint(scaled * cap / 2), 1, cap).astype(np.int64)


def _rollout(budget: StepBudget, group: int, sample: int, prompt: list[int], length: int, vocab: int,
             rng: np.random.Generator) -> Rollout:
    truncated, reward = length == budget.cap, float(sample % 2)
    return Rollout(
        step=budget.step, phase=budget.phase, cap=budget.cap, cap_version=budget.version, group=group, sample=sample,
        prompt_id=f"p{group}", tier="bench", answer="", prompt_ids=prompt,
        response_ids=rng.integers(1, vocab, length).tolist(),
        logprobs=(-np.log(vocab) + rng.normal(0, 0.1, length)).astype(np.float32).tolist(),
        finish_reason="length" if truncated else "stop", truncated=truncated, outcome="right" if reward else "wrong",
        reward=reward, budget_rewards=[reward], spans=[{"version": "0", "start": 0, "end": length}], engine=0,
        seconds=1.0)
