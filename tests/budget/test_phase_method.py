"""What follows the phase: against a plain look-up, key by key, and refused where a key would never be read."""

from __future__ import annotations

import json
from itertools import product
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from siri_megatron.budget.method import Method, method_at
from siri_megatron.budget.step_budget import PHASES, Phase
from siri_megatron.config import RunConfig, identity_hash, validate
from siri_megatron.errors import ConfigError
from siri_megatron.learner.losses import POLICY_LOSSES

FORCED = {"forced_text": "A", "forced_reserve": 4}
VALUES: dict[str, st.SearchStrategy[Any]] = {
    "overlong": st.sampled_from(["zero", "mask", "soft", "forced"]),
    "advantage": st.sampled_from(["group_std", "group_mean", "batch_std", "leave_one_out"]),
    "clip_low": st.floats(0.1, 0.5), "clip_high": st.floats(0.1, 0.5), "entropy_coef": st.floats(0, 0.1),
    "lr": st.floats(1e-6, 1e-3)}
SECTION = {"overlong": "reward", "advantage": "algorithm", "clip_low": "algorithm", "clip_high": "algorithm",
           "entropy_coef": "algorithm", "lr": "optimizer"}
overrides = st.fixed_dictionaries({}, optional=VALUES)


def raw(**sections: Any) -> dict[str, Any]:
    return {"name": "r", "model": {"path": "m"}, "optimizer": {"lr": 1e-4},
            "budget": {"l_min": 48, "l_max": 128, "cycle_steps": 24, "cycles": 3}} | sections


def config(base: dict[str, Any], compression: dict[str, Any], expansion: dict[str, Any], loss: str = "grpo"
           ) -> RunConfig:
    sections: dict[str, Any] = {"algorithm": {"loss": loss}, "optimizer": {"lr": 1e-4}, "reward": {}}
    for key, value in base.items():
        sections[SECTION[key]][key] = value
    if "forced" in {over.get("overlong", base.get("overlong")) for over in (compression, expansion)}:
        sections["reward"] |= FORCED
    return validate(raw(**sections, phases={"compression": compression, "expansion": expansion}), "test")


@given(overrides, overrides, overrides, st.sampled_from(sorted(POLICY_LOSSES)))
def test_overrides_win(base: dict[str, Any], compression: dict[str, Any], expansion: dict[str, Any], loss: str) -> None:
    run, clip = config(base, compression, expansion, loss), POLICY_LOSSES[loss].clip
    plain = {"overlong": "zero", "advantage": "group_std", "clip_low": clip.low, "clip_high": clip.high,
             "entropy_coef": 0.0, "lr": 1e-4}
    for phase, override in (("compression", compression), ("expansion", expansion)):
        assert method_at(run, phase).to_json() == plain | base | override


@given(overrides, overrides)
def test_json_round_trip(compression: dict[str, Any], expansion: dict[str, Any]) -> None:
    for phase in PHASES:
        method = method_at(config({}, compression, expansion), phase)
        assert Method(**json.loads(json.dumps(method.to_json()))) == method


@given(overrides, overrides)
def test_changes_name_what_differs(compression: dict[str, Any], expansion: dict[str, Any]) -> None:
    run = config({}, compression, expansion)
    before, now = (method_at(run, phase) for phase in PHASES)
    named = {part.split()[0] for part in now.changes(before).split(", ") if part}
    assert named == {key for key in VALUES if getattr(before, key) != getattr(now, key)}


def test_changes_for_people() -> None:
    run = config({}, {"lr": 2e-4, "overlong": "mask"}, {"clip_high": 0.4})
    before, now = (method_at(run, phase) for phase in PHASES)
    assert now.changes(before) == "overlong mask to zero, clip_high 0.28 to 0.4, lr 0.0002 to 0.0001"
    assert now.changes(now) == ""


@pytest.mark.parametrize(("key", "phase"), list(product(VALUES, PHASES)))
def test_the_identity_knows_every_override(key: str, phase: Phase) -> None:
    other = {"overlong": "mask", "advantage": "batch_std"}.get(key, 0.011)
    changed = validate(raw(phases={phase: {key: other}}), "test")
    assert identity_hash(changed) != identity_hash(validate(raw(), "test"))


STAGED = {"schedule": "staged", "l_min": 48, "l_max": 128, "stages": [[3, 128], [3, 48]]}
CLOSED = {"schedule": "closed", "l_min": 48, "l_max": 128, "cycle_steps": 24, "cycles": 3}
REFUSED: list[tuple[dict[str, Any], tuple[str, str]]] = [
    ({"algorithm": {"entropy_target": 0.5}, "phases": {"expansion": {"entropy_coef": 0.01}}},
     ("phases.expansion.entropy_coef=0.01", "entropy_target=0.5")),
    ({"budget": STAGED, "phases": {"expansion": {"lr": 1e-5}}}, ("phases.expansion.lr is never read", "budget.stages")),
    ({"reward": {"overlong_buffer": 0.1}}, ("reward.overlong_buffer=0.1", "overlong is zero")),
    ({"reward": {"overlong_buffer": 0.1}, "phases": {"compression": {"overlong": "mask"}}},
     ("reward.overlong_buffer=0.1", "mask and zero")),
    ({"reward": {"forced_text": "A"}}, ("reward.forced_text='A'", "overlong is zero")),
    ({"reward": {"forced_reserve": 9}}, ("reward.forced_reserve=9", "overlong is zero")),
    ({"reward": {"overlong": "forced"}}, ("forced_text=None", "forced_reserve=None")),
    ({"phases": {"expansion": {"overlong": "forced"}}, "reward": {"forced_text": "A"}}, ("'A'", "forced_reserve=None")),
    ({"reward": {"overlong": "forced", "forced_text": "A", "forced_reserve": 48}}, ("forced_reserve=48", "cap of 48")),
    ({"reward": {"overlong": "forced", "forced_text": "A", "forced_reserve": 24},
      "budget": {"l_min": 48, "l_max": 128, "cycle_steps": 24, "cycles": 3,
                 "prompt_caps": {"rule": "da_dler", "floor": 24}}}, ("forced_reserve=24", "cap of 24")),
    ({"reward": {"overlong": "forced", **FORCED}, "budget": CLOSED}, ("overlong=forced", "schedule=closed"))]


@pytest.mark.parametrize(("sections", "named"), REFUSED)
def test_a_key_that_is_never_read_is_refused(sections: dict[str, Any], named: tuple[str, str]) -> None:
    with pytest.raises(ConfigError) as caught:
        validate(raw(**sections), "test")
    for value in named:
        assert value in caught.value.what


@pytest.mark.parametrize("sections", [
    {"reward": {"overlong_buffer": 0.1}, "phases": {"compression": {"overlong": "soft"}}},
    {"reward": FORCED, "phases": {"expansion": {"overlong": "forced"}}},
    {"budget": STAGED, "phases": {"compression": {"lr": 1e-5}}},
    {"budget": STAGED | {"stages": [[3, 48], [3, 128]]}, "phases": {"expansion": {"lr": 1e-5}}},
    {"budget": {"schedule": "constant", "l_min": 48, "l_max": 128, "cycle_steps": 4, "cycles": 1},
     "phases": {"expansion": {"lr": 1e-5}}}])
def test_negative_control_the_same_keys_where_they_are_read(sections: dict[str, Any]) -> None:
    validate(raw(**sections), "test")


def test_a_phase_that_never_comes_does_not_make_a_key_read() -> None:
    """Stages that only fall: what the expansion would do with overlong answers counts for nothing."""
    soft = raw(budget=STAGED, phases={"expansion": {"overlong": "soft"}}, reward={"overlong_buffer": 0.1})
    with pytest.raises(ConfigError, match="never read"):
        validate(soft, "test")
