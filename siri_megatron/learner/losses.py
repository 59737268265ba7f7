"""The policy losses as one table, and the small pure functions it is made of. Pure; imports no torch.

    loss of an optimizer step = sum over its response tokens of
        weight x (correction x surrogate + kl_coef x kl - entropy_coef x entropy)

`surrogate` is a function of this module, chosen by `algorithm.loss`; `weight` holds the whole denominator (over all
ranks and micro-batches) and is made by the planner, which reads the same table. To add a loss, add an entry to
POLICY_LOSSES (and its name to `AlgorithmConfig.loss`).

Notation: r = pi/pi_old of a token, A its advantage. Tensors are [b, s]; nothing here knows of padding, which has weight
0, but for the means over a sample, which `Samples` takes over the tokens that count.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from torch import Tensor

    from siri_megatron.config import AlgorithmConfig

Aggregation = Literal["sample_mean", "token_mean", "constant"]


@dataclass(frozen=True)
class Clip:
    """Range 1 - low .. 1 + high of the ratio."""

    low: float
    high: float


def unchanged(values: Tensor) -> Tensor:
    return values


@dataclass(frozen=True)
class Samples:
    """Which sample of its micro-batch each token belongs to; a sample is never split over micro-batches."""

    segment: Tensor
    """[b, s] int64, from 0; anything where `counts` is 0."""
    counts: Tensor
    """[b, s] 1.0 for the tokens that take part: response tokens that are not masked."""
    number: int
    total: Callable[[Tensor], Tensor] = unchanged
    """Sum over the context-parallel ranks, which hold the other tokens of the same samples, with gradient."""

    def tokens(self) -> Tensor:
        """[number] tokens of each sample that take part."""
        return self.total(self.counts.new_zeros(self.number).index_add(0, self.segment.flatten(),
                                                                       self.counts.flatten()))

    def at_tokens(self, values: Tensor) -> Tensor:
        """[b, s] at each token, the value of its sample. values: [number]."""
        return values[self.segment]

    def sum(self, values: Tensor) -> Tensor:
        """[b, s] at each token, the sum of values over the tokens of its sample."""
        own = values.new_zeros(self.number).index_add(0, self.segment.flatten(), (values * self.counts).flatten())
        return self.at_tokens(self.total(own))

    def mean(self, values: Tensor) -> Tensor:
        """[b, s] at each token, the mean of values over the tokens of its sample (0 for a sample without any)."""
        return self.sum(values) / self.at_tokens(self.tokens()).clamp(min=1)


Surrogate = Callable[["Tensor", "Tensor", "Tensor", Clip, Samples], "tuple[Tensor, Tensor]"]
"""(log-probs, old log-probs, advantages, clip, samples) -> (loss, bool: the clip was at work), each [b, s]"""


def token_clip(logprobs: Tensor, old_logprobs: Tensor, advantages: Tensor, clip: Clip,
               _: Samples) -> tuple[Tensor, Tensor]:
    """-min(r A, clip(r, 1 - low, 1 + high) A): PPO's clip with DAPO's two ranges, as SIRI prints it.

    Source: arXiv 2509.25176 eq. 1; arXiv 2503.14476 eq. 8.
    """
    return _clipped((logprobs - old_logprobs).exp(), advantages, clip)


def sequence_clip(logprobs: Tensor, old_logprobs: Tensor, advantages: Tensor, clip: Clip,
                  samples: Samples) -> tuple[Tensor, Tensor]:
    """-min(s A, clip(s) A) with s = exp(mean over the sample of log r): the same value at each of its tokens.

    GSPO, arXiv 2507.18071 eq. 5-7. With one advantage a sample it has the gradient of GSPO-token (eq. 13).
    """
    return _clipped(samples.mean(logprobs - old_logprobs).exp(), advantages, clip)


def weight_clip(logprobs: Tensor, old_logprobs: Tensor, advantages: Tensor, clip: Clip,
                _: Samples) -> tuple[Tensor, Tensor]:
    """-sg(clip(r, 1 - low, 1 + high)) A log pi: the weight is clipped, and no token loses its gradient.

    CISPO (MiniMax-M1), arXiv 2506.13585 eq. 4-5.
    """
    ratio = (logprobs - old_logprobs).detach().exp()
    weight = ratio.clamp(1 - clip.low, 1 + clip.high)
    return -weight * advantages * logprobs, weight != ratio


@dataclass(frozen=True)
class PolicyLoss:
    """One entry of `algorithm.loss`."""

    surrogate: Surrogate
    aggregation: Aggregation
    clip: Clip
    """The paper's own; `algorithm.clip_low` and `clip_high` go before it."""

    def clip_of(self, algorithm: AlgorithmConfig) -> Clip:
        """The configured range; a bound that is None is the loss's own."""
        return Clip(self.clip.low if algorithm.clip_low is None else algorithm.clip_low,
                    self.clip.high if algorithm.clip_high is None else algorithm.clip_high)


POLICY_LOSSES: dict[str, PolicyLoss] = {
    "grpo": PolicyLoss(token_clip, "sample_mean", Clip(0.2, 0.28)),  # arXiv 2509.25176, as SIRI prints it
    "dapo": PolicyLoss(token_clip, "token_mean", Clip(0.2, 0.28)),  # arXiv 2503.14476
    "dr_grpo": PolicyLoss(token_clip, "constant", Clip(0.2, 0.2)),  # arXiv 2503.20783
    "gspo": PolicyLoss(sequence_clip, "sample_mean", Clip(3e-4, 4e-4)),  # arXiv 2507.18071, section 5.1
    # arXiv 2506.13585 gives no lower bound and no number for the upper one; r <= 5 is that of arXiv 2510.13786's range
    "cispo": PolicyLoss(weight_clip, "token_mean", Clip(1.0, 4.0)),
}


def token_weight(aggregation: Aggregation, own: Any, *, samples: Any, tokens: Any, constant: float) -> Any:
    """Weight of each token in the loss, from counts over one optimizer step (all ranks and micro-batches).

    sample_mean: 1/(n |y|). token_mean: 1/sum |y|. constant: 1/(n c), where c follows neither lengths nor cap.

    Args:
        own: numpy array or tensor: tokens of the sample that each entry belongs to, at least 1.
        samples, tokens: how many there are in the optimizer step, at least 1 (scalars, or of own's kind).
    """
    if aggregation == "sample_mean":
        return 1 / (samples * own)
    return 1 / (tokens if aggregation == "token_mean" else samples * constant) + 0 * own


def k1(logprobs: Tensor, reference: Tensor) -> Tensor:
    """log pi - log ref: unbiased for the KL, of both signs. As a loss its expected gradient on-policy is zero."""
    return logprobs - reference


def k2(logprobs: Tensor, reference: Tensor) -> Tensor:
    """(log pi - log ref)^2 / 2: biased, but its expected gradient on-policy is that of KL(pi || ref)."""
    return (logprobs - reference).square() / 2


def k3(logprobs: Tensor, reference: Tensor) -> Tensor:
    """exp(d) - 1 - d with d = log ref - log pi: unbiased and never negative; GRPO's (arXiv 2402.03300 eq. 4).

    Its expected gradient on-policy is that of KL(ref || pi).
    """
    difference = reference - logprobs
    return difference.exp() - 1 - difference


KL_ESTIMATORS = {"k1": k1, "k2": k2, "k3": k3}
"""Estimators of KL(pi || ref) at tokens sampled from pi. Source: Schulman, "Approximating KL divergence" (2020)."""


def negative_log_likelihood(logprobs: Tensor) -> Tensor:
    """The supervised loss."""
    return -logprobs


def _clipped(ratio: Tensor, advantages: Tensor, clip: Clip) -> tuple[Tensor, Tensor]:
    plain = ratio * advantages
    clipped = ratio.clamp(1 - clip.low, 1 + clip.high) * advantages
    return -plain.minimum(clipped), clipped < plain
