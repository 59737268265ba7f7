"""Rollout correction where one response was sampled under several weight versions: each token by its own weights.

What the ledger has of a token is the log-prob under the weights that sampled it. So rho = pi_learner / pi_engine of a
token holds its staleness as well, and no rule has to know of spans. The oracle keeps three models apart and loops.
"""

from __future__ import annotations

import math
from typing import Any

import grpo_reference as reference
import pytest
import torch
from models import load_model, write_model

from siri_megatron.config import AlgorithmConfig
from siri_megatron.learner.correction import VETO, correct
from siri_megatron.learner.losses import Samples

LENGTHS, SWITCH = (12, 9, 5), (7, 0, 5)
"""Tokens of each response, and how many of them are of the older weights: some, none, all."""
RULES: dict[str, dict[str, Any]] = {
    "tis": {"correction_high": 1.05}, "mask": {"correction_low": 0.93, "correction_high": 1.07},
    "sequence": {"correction_low": 0.98, "correction_high": 1.06}}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> list[Any]:
    """The weights of two pushes, and those that train: each has moved on from the one before."""
    path = write_model(tmp_path_factory.mktemp("versions") / "model")
    found = [load_model(path) for _ in range(3)]
    generator = torch.Generator().manual_seed(4)
    with torch.no_grad():
        for age, model in enumerate(found):
            for _ in range(age):
                for parameter in model.parameters():
                    parameter.mul_(1 + 0.02 * torch.randn(parameter.shape, generator=generator))
    return found


def responses() -> list[tuple[list[int], list[int]]]:
    generator = torch.Generator().manual_seed(5)
    return [([3, 1, 4], torch.randint(reference.VOCAB, (length,), generator=generator).tolist()) for length in LENGTHS]


def logprobs(model: Any) -> list[list[float]]:
    with torch.no_grad():
        return [reference.hf_logprobs(model, prompt, response, 1.0).tolist() for prompt, response in responses()]


def rhos(models: list[Any], switch: tuple[int, ...]) -> list[list[float]]:
    """rho of each token, from the model that its version names."""
    older, newer, now = map(logprobs, models)
    return [[math.exp(now[row][at] - (older if at < switch[row] else newer)[row][at]) for at in range(length)]
            for row, length in enumerate(LENGTHS)]


def expected(found: list[list[float]], rule: str, keys: dict[str, Any]) -> list[list[float]]:
    """Factor of each token, 0 where it is masked, as the sources say."""
    low, high = keys.get("correction_low", 0.0), keys["correction_high"]
    if rule == "tis":
        return [[min(rho, high) for rho in row] for row in found]
    if rule == "mask":
        return [[rho if low <= rho <= high else 0.0 for rho in row] for row in found]
    means = [math.exp(sum(map(math.log, row)) / len(row)) for row in found]
    kept = [low <= mean <= high and min(row) >= VETO for row, mean in zip(found, means, strict=True)]
    return [[float(stays)] * len(row) for row, stays in zip(found, kept, strict=True)]


def corrected(models: list[Any], rule: str, keys: dict[str, Any]) -> list[list[float]]:
    """What the learner makes of the ledger's log-probs: it sees no versions."""
    older, newer, now = map(logprobs, models)
    ledger = [older[row][:SWITCH[row]] + newer[row][SWITCH[row]:] for row in range(len(LENGTHS))]
    log_rho = torch.tensor([[a - b for mine, its in zip(now, ledger, strict=True)
                             for a, b in zip(mine, its, strict=True)]])
    segment = torch.tensor([[row for row, length in enumerate(LENGTHS) for _ in range(length)]])
    samples = Samples(segment, torch.ones_like(log_rho), len(LENGTHS))
    algorithm = AlgorithmConfig(old_logprobs="decoupled", correction=rule, **keys)
    result = correct(log_rho, torch.ones_like(log_rho), samples, algorithm)
    flat = (result.factor * result.after.counts)[0].tolist()
    starts = [sum(LENGTHS[:row]) for row in range(len(LENGTHS))]
    return [flat[start:start + length] for start, length in zip(starts, LENGTHS, strict=True)]


@pytest.mark.parametrize("rule", RULES)
def test_each_token_is_corrected_by_the_weights_that_sampled_it(models: list[Any], rule: str) -> None:
    keys = RULES[rule]
    wanted = expected(rhos(models, SWITCH), rule, keys)
    for row, mine in zip(wanted, corrected(models, rule, keys), strict=True):
        assert mine == pytest.approx(row, abs=1e-5)
    assert len({round(factor, 6) for row in wanted for factor in row}) > 1


@pytest.mark.parametrize("rule", RULES)
def test_negative_control_one_version_for_all(models: list[Any], rule: str) -> None:
    """Were every token taken for one of the newer weights, the factors would be others."""
    one = expected(rhos(models, (0, 0, 0)), rule, RULES[rule])
    assert any(mine != pytest.approx(row, abs=1e-3)
               for row, mine in zip(one, corrected(models, rule, RULES[rule]), strict=True))
