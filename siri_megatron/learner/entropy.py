"""Weight of the entropy bonus: fixed, or steered so that the entropy stays near a target. Pure.

Skywork-OR1's rule (arXiv 2505.22312): c rises by delta after a step whose entropy is below the target and falls by
delta after one above it; in a step, the bonus has weight c if the entropy is at most the target, else 0. Two things are
ours. The entropy that decides is the one measured in the step before (theirs: in a pass before each step, which bypass
does not make), so the first step has no bonus. And c never becomes negative: it would push a low entropy lower.

Invariants:
- fixed_without_target: without a target the weight of a step is the coefficient of its method.
- applies_below_target: with one, the weight is 0 unless the last entropy is at most the target.
- restored: the state is JSON, and a restored control goes on as if never stopped.
"""

from __future__ import annotations

from typing import Any

from siri_megatron.config import AlgorithmConfig


class EntropyControl:
    """The bonus's weight from step to step."""

    def __init__(self, algorithm: AlgorithmConfig) -> None:
        self._target, self._delta = algorithm.entropy_target, algorithm.entropy_delta
        self.in_use = bool(algorithm.entropy_coef or algorithm.entropy_target)
        self._coefficient = algorithm.entropy_coef
        self._entropy: float | None = None

    def weight(self, fixed: float) -> float:
        """Weight of the bonus in the next step. fixed: what it is without a target."""
        if self._target is None:
            return fixed
        applies = self._entropy is not None and self._entropy <= self._target
        return self._coefficient if applies else 0.0

    def observe(self, entropy: float) -> None:
        """Hear the mean entropy of a step, nats a token."""
        self._entropy = entropy
        if self._target is not None and entropy != self._target:
            change = self._delta if entropy < self._target else -self._delta
            self._coefficient = max(0.0, self._coefficient + change)

    def state(self) -> dict[str, Any]:
        """JSON."""
        return {"coefficient": self._coefficient, "entropy": self._entropy}

    def restore(self, state: dict[str, Any]) -> None:
        self._coefficient, self._entropy = state["coefficient"], state["entropy"]
