"""What an evaluation says in numbers, with 95% intervals. Pure.

Invariants:
    inside: every interval contains its estimate and, for an accuracy, lies in [0, 1].
    honest_ends: an accuracy of 0 or 1 has an interval of more than one point.
    no_verdict_no_vote: samples whose verification failed enter no accuracy.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

Z95 = 1.959963984540054


@dataclass(frozen=True)
class EvalSample:
    """One response to a held-out problem."""

    problem: int
    tier: str
    tokens: int
    truncated: bool
    rewards: dict[int, float]
    """Budget -> 1, 0 or NaN (no verdict)."""


def evaluation_report(samples: Sequence[EvalSample], budgets: Sequence[int]) -> dict[str, Any]:
    """Accuracy at the largest budget, tokens, truncation, J(B), and each tier apart."""
    tiers = defaultdict(list)
    for sample in samples:
        tiers[sample.tier].append(sample)
    return {
        **_summary(samples, max(budgets)),
        "budgets": {str(budget): _accuracy(samples, budget) for budget in sorted(budgets)},
        "tiers": {tier: _summary(tiers[tier], max(budgets)) for tier in sorted(tiers)},
        "pass_at": pass_at([[reward for reward in group if not math.isnan(reward)] for group in _by_problem(
            (sample.problem, sample.rewards[max(budgets)]) for sample in samples)]),
        "tokens": sum(sample.tokens for sample in samples),
        "failed_verifications": sum(math.isnan(sample.rewards[max(budgets)]) for sample in samples),
    }


def _summary(samples: Sequence[EvalSample], budget: int) -> dict[str, Any]:
    at_budget = _accuracy(samples, budget)
    tokens, interval = mean_interval(_by_problem((sample.problem, float(sample.tokens)) for sample in samples))
    return {
        "accuracy": at_budget["accuracy"], "accuracy_ci": at_budget["ci"],
        "mean_tokens": tokens, "mean_tokens_ci": interval,
        "truncated": sum(sample.truncated for sample in samples) / len(samples),
        "problems": len({sample.problem for sample in samples}),
    }


def _accuracy(samples: Sequence[EvalSample], budget: int) -> dict[str, Any]:
    verdicts = [(sample.problem, sample.rewards[budget]) for sample in samples
                if not math.isnan(sample.rewards[budget])]
    if not verdicts:
        return {"accuracy": None, "ci": None}
    accuracy = sum(reward for _, reward in verdicts) / len(verdicts)
    return {"accuracy": accuracy, "ci": list(wilson(accuracy, len({problem for problem, _ in verdicts})))}


def pass_at(verdicts: Sequence[Sequence[float]]) -> dict[str, float]:
    """pass@k for k = 1, 2, 4, ... and the number of samples: the chance that one of k answers is right.

    The unbiased estimate 1 - C(n-c, k) / C(n, k) of n verdicts with c right (Chen et al. 2021, eq. 1), averaged over
    problems. Problems with fewer than k verdicts are left out.
    """
    most = max(map(len, verdicts), default=0)
    ks = sorted({2**power for power in range(most.bit_length()) if 2**power <= most} | ({most} if most else set()))
    return {str(k): mean_pass(verdicts, k) for k in ks}


def mean_pass(verdicts: Sequence[Sequence[float]], k: int) -> float:
    chances = [1 - math.comb(len(group) - int(sum(group)), k) / math.comb(len(group), k)
               for group in verdicts if len(group) >= k]
    return sum(chances) / len(chances)


def wilson(share: float, n: int) -> tuple[float, float]:
    """Wilson's 95% score interval of a share seen in n independent trials (Wilson 1927).

    With several samples a problem, n is the number of problems: samples of one problem are not independent, and since
    a problem's mean varies at most as one sample does, the interval is then on the wide side.
    """
    z2 = Z95 * Z95 / n
    middle = (share + z2 / 2) / (1 + z2)
    half = Z95 / (1 + z2) * math.sqrt(share * (1 - share) / n + z2 / (4 * n))
    return max(0.0, min(share, middle - half)), min(1.0, max(share, middle + half))


def mean_interval(groups: Sequence[Sequence[float]]) -> tuple[float, list[float] | None]:
    """Mean over all values, and 1.96 standard errors around it taken over groups of equal size; None for one group."""
    mean = sum(map(sum, groups)) / sum(map(len, groups))
    if len(groups) < 2:
        return mean, None
    spread = sum((sum(group) / len(group) - mean) ** 2 for group in groups) / (len(groups) - 1)
    half = Z95 * math.sqrt(spread / len(groups))
    return mean, [mean - half, mean + half]


def by_question(samples: Sequence[EvalSample], budget: int) -> dict[str, list[float | None]]:
    """Mean reward (None: no verdict) and mean tokens of each question, in order: what makes two evaluations a pair."""
    rewards = _by_problem((sample.problem, sample.rewards[budget]) for sample in samples)
    tokens = _by_problem((sample.problem, float(sample.tokens)) for sample in samples)
    judged = [[reward for reward in group if not math.isnan(reward)] for group in rewards]
    return {"accuracy": [sum(group) / len(group) if group else None for group in judged],
            "tokens": [sum(group) / len(group) for group in tokens]}


def _by_problem(values: Iterable[tuple[int, float]]) -> list[list[float]]:
    groups = defaultdict(list)
    for problem, value in values:
        groups[problem].append(value)
    return list(groups.values())
