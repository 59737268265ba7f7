"""The weight of the entropy bonus from step to step."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from siri_megatron.config import AlgorithmConfig
from siri_megatron.learner.entropy import EntropyControl

entropies = st.lists(st.floats(0, 2), max_size=30)


def weights(control: EntropyControl, entropies: list[float], fixed: float = 9.0) -> list[float]:
    found = []
    for entropy in entropies:
        found.append(control.weight(fixed))
        control.observe(entropy)
    return found


@given(entropies)
def test_fixed_without_target(entropies: list[float]) -> None:
    """Whatever the run's own coefficient is: the phase's counts."""
    assert set(weights(EntropyControl(AlgorithmConfig(entropy_coef=0.01)), entropies, 0.03)) <= {0.03}


def test_by_hand() -> None:
    """Target 1, delta 0.1: two low entropies raise c to 0.2; a high one lowers it and switches the bonus off."""
    control = EntropyControl(AlgorithmConfig(entropy_target=1.0, entropy_delta=0.1))
    assert weights(control, [0.5, 0.9, 1.2, 1.1, 1.3, 1.0, 0.9, 0.9]) == pytest.approx(
        [0.0, 0.1, 0.2, 0.0, 0.0, 0.0, 0.0, 0.1])


@given(entropies, st.floats(0.1, 2), st.floats(0, 0.1))
def test_applies_below_target(entropies: list[float], target: float, start: float) -> None:
    control = EntropyControl(AlgorithmConfig(entropy_target=target, entropy_coef=start))
    found = weights(control, entropies)
    assert all(weight >= 0 for weight in found)
    for weight, before in zip(found, [None, *entropies], strict=False):
        assert weight == 0 or (before is not None and before <= target)


@given(entropies, entropies)
def test_restored(before: list[float], after: list[float]) -> None:
    algorithm = AlgorithmConfig(entropy_target=0.7, entropy_coef=0.02)
    straight, resumed = EntropyControl(algorithm), EntropyControl(algorithm)
    weights(straight, before)
    resumed.restore(json.loads(json.dumps(straight.state())))
    assert weights(resumed, after) == weights(straight, after)
