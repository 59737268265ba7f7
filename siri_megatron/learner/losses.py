"""Per-token objectives. Pure: [b, s] in, [b, s] loss out; the caller multiplies by token weights and sums."""

from __future__ import annotations

from torch import Tensor


def clipped_surrogate(logprobs: Tensor, old_logprobs: Tensor, advantages: Tensor, *, clip_low: float,
                      clip_high: float) -> tuple[Tensor, Tensor]:
    """-min(r A, clip(r, 1 - clip_low, 1 + clip_high) A) with r = exp(logprobs - old_logprobs).

    PPO's clip with DAPO's two ranges, as SIRI prints it (arXiv 2509.25176, eq. 1; arXiv 2503.14476, eq. 8).

    Returns:
        the loss, and (bool) where the clip took the gradient away.
    """
    ratio = (logprobs - old_logprobs).exp()
    plain = ratio * advantages
    clipped = ratio.clamp(1 - clip_low, 1 + clip_high) * advantages
    return -plain.minimum(clipped), clipped < plain


def negative_log_likelihood(logprobs: Tensor) -> Tensor:
    """The supervised loss."""
    return -logprobs
