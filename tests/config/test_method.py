"""Combinations of algorithm keys that mean nothing are refused: both values, the rule, the fix."""

from __future__ import annotations

from typing import Any

import pytest

from siri_megatron.config import AlgorithmConfig, load
from siri_megatron.errors import ConfigError
from siri_megatron.launch.spec import PACKAGE_ROOT

REFUSED: list[tuple[dict[str, Any], str, str]] = [
    ({"dr_grpo_tokens": 100}, "dr_grpo_tokens=100", "loss=grpo"),
    ({"kl_estimator": "k2"}, "kl_estimator=k2", "kl_coef=0.0"),
    ({"entropy_delta": 0.1, "entropy_coef": 0.1}, "entropy_delta=0.1", "entropy_target=None"),
    ({"correction": "tis"}, "correction=tis", "old_logprobs=bypass"),
    ({"old_logprobs": "decoupled", "correction": "tis", "correction_low": 0.5}, "correction_low=0.5", "correction=tis"),
    ({"old_logprobs": "decoupled", "correction_high": 3.0}, "correction_high=3.0", "correction=none")]
FINE: list[dict[str, Any]] = [
    {}, {"loss": "dr_grpo", "dr_grpo_tokens": 100}, {"kl_coef": 0.1, "kl_estimator": "k2"},
    {"entropy_target": 0.3, "entropy_delta": 0.1}, {"old_logprobs": "decoupled"},
    {"old_logprobs": "decoupled", "correction": "tis", "correction_high": 3.0},
    {"old_logprobs": "decoupled", "correction": "mask", "correction_low": 0.8, "correction_high": 3.0}]


@pytest.mark.parametrize(("keys", "one", "other"), REFUSED)
def test_a_key_that_is_never_read_is_refused(keys: dict[str, Any], one: str, other: str) -> None:
    with pytest.raises(ConfigError) as error:
        load_tiny(keys)
    assert one in error.value.what
    assert other in error.value.what
    assert "leave" in error.value.what


@pytest.mark.parametrize("keys", FINE)
def test_meaningful_combinations_pass_and_survive_being_resolved(keys: dict[str, Any]) -> None:
    """A resolved config names every key, so that a key is there says nothing: only its value may."""
    algorithm = AlgorithmConfig(**keys)
    assert AlgorithmConfig(**algorithm.model_dump()) == algorithm
    load_tiny(keys)


@pytest.mark.parametrize("keys", [{"correction_low": 1.5}, {"correction_high": 0.9}, {"kl_coef": -1}, {"clip_low": 0}])
def test_out_of_range(keys: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        load_tiny({"old_logprobs": "decoupled", "correction": "mask"} | keys)


def load_tiny(keys: dict[str, Any]) -> None:
    from pathlib import Path
    load(Path("configs/tiny.yaml"), [f"algorithm.{key}={value}" for key, value in keys.items()])


@pytest.mark.parametrize(("override", "one", "other"), [
    ("batching.buckets=8", "buckets=8", "mode=packed"), ("reward.workers=3", "workers=3", "verifier=exact"),
    ("reward.timeout_s=9", "timeout_s=9", "verifier=exact"), ("reward.memory_gib=9", "memory_gib=9", "verifier=exact")])
def test_a_setting_of_what_is_not_chosen_is_refused(override: str, one: str, other: str) -> None:
    with pytest.raises(ConfigError, match=f"{one} is never read with {other}"):
        load(PACKAGE_ROOT / "configs" / "tiny.yaml", [override])
