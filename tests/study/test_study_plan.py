"""Plans: what is refused, what the runs of a seed share, what the fingerprint covers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from siri_megatron.errors import ConfigError
from siri_megatron.report.compare import flat
from siri_megatron.study.plan import StudyPlan, fingerprint, load_plan, run_config, warm_config

CONFIGS = Path("configs").resolve()
SHIPPED = sorted((CONFIGS / "study").glob("*.yaml"))


def write(place: Path, **changes: Any) -> Path:
    raw = {"name": "s", "kind": "exploratory", "config": str(CONFIGS / "tiny.yaml"),
           "warm_starts": {"path": str(CONFIGS / "models/tiny-digits")}, "seeds": [1, 2],
           "arms": {"fixed": {"budget": {"schedule": "constant"}}, "siri": {}}}
    path = place / "plan.yaml"
    path.write_text(yaml.safe_dump(raw | changes))
    return path


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_shipped_plans_are_whole(path: Path) -> None:
    plan = load_plan(path)
    for arm in plan.arms:
        configs = [run_config(plan, arm, seed, Path("runs"), Path("model")) for seed in plan.seeds]
        assert len({config.budget.steps for config in configs}) == 1


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_paired(path: Path) -> None:
    """All arms of a plan have the same steps, samples, evaluation and warm start."""
    plan = load_plan(path)
    runs = [flat(run_config(plan, arm, plan.seeds[0], Path("runs"), Path("m")).model_dump(mode="json"))
            for arm in plan.arms]
    shared = [{key: value for key, value in run.items() if key.startswith(("seed", "model", "data", "evaluation"))}
              for run in runs]
    assert all(run == shared[0] for run in shared)
    steps = {run_config(plan, arm, plan.seeds[0], Path("runs"), Path("m")).budget.steps for arm in plan.arms}
    assert len(steps) == 1


@pytest.mark.parametrize(("changes", "named"), [
    ({"arms": {"a": {"budget": {"l_min": 500}}}}, "l_min=500"),
    ({"arms": {"a": {"budgets": {}}}}, "arm a of study s"),
    ({"arms": {"a": {"seed": 3}}}, "sets seed=3"),
    ({"settings": {"engines": {"urls": ["http://h:1"]}}}, "engines.urls"),
    ({"seeds": [1, 1]}, "has one twice"),
    ({"seeds": []}, "seeds"),
    ({"warm_starts": {}}, "exactly one of path"),
    ({"warm_starts": {"config": "w.yaml"}}, "warm_starts"),
    ({"warm_starts": {"config": str(CONFIGS / "tiny.yaml"), "seeds": [1]}}, "tiny.yaml"),
    ({"warm_starts": {"config": str(CONFIGS / "tiny-warmstart.yaml"), "seeds": [1, 2, 3]}}, "3 warm starts for 2"),
    ({"warm_starts": {"path": str(CONFIGS / "models/tiny-digits"), "within": [0.6, 0.3]}}, "the smaller first"),
    ({"warm_starts": {"path": str(CONFIGS / "models/tiny-digits"), "within": [0.3, 0.6]},
      "arms": {"a": {"evaluation": {"at_start": False}}}}, "arm a has evaluation.at_start=false"),
    ({"config": "nowhere.yaml"}, "nowhere.yaml"),
    ({"extra": 1}, "extra"),
])
def test_what_is_wrong_is_named(tmp_path: Path, changes: dict[str, Any], named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        load_plan(write(tmp_path, **changes))


def test_frozen(tmp_path: Path) -> None:
    plan = load_plan(write(tmp_path))
    assert fingerprint(plan) == fingerprint(load_plan(write(tmp_path)))
    for change in ({"seeds": [1, 3]}, {"settings": {"optimizer": {"lr": 1e-3}}}, {"kind": "confirmatory"},
                   {"arms": {"siri": {}}}, {"config": str(CONFIGS / "tiny-bucketed.yaml")},
                   {"warm_starts": {"config": str(CONFIGS / "tiny-warmstart.yaml"), "seeds": [5]}},
                   {"warm_starts": {"path": str(CONFIGS / "models/tiny-digits"), "within": [0.3, 0.6]}}):
        assert fingerprint(load_plan(write(tmp_path, **change))) != fingerprint(plan), change


def test_frozen_covers_the_weights_of_a_model_that_is_there(tmp_path: Path) -> None:
    prints = []
    for content in (b"one", b"two"):
        (tmp_path / "model.safetensors").write_bytes(content)
        plan = StudyPlan.model_validate(yaml.safe_load(write(tmp_path).read_text())
                                        | {"warm_starts": {"path": str(tmp_path)}})
        prints.append(fingerprint(plan))
    assert prints[0] != prints[1]
    with pytest.raises(ConfigError, match="nowhere"):
        fingerprint(plan.model_copy(update={"warm_starts": plan.warm_starts.model_copy(
            update={"path": tmp_path / "nowhere"})}))


def test_warm_starts_differ_in_seed_and_place_alone(tmp_path: Path) -> None:
    plan = load_plan(write(tmp_path, warm_starts={"config": str(CONFIGS / "tiny-warmstart.yaml"), "seeds": [5, 6]}))
    one, other = (warm_config(plan, seed, tmp_path).model_dump() for seed in (5, 6))
    assert {key for key in one if one[key] != other[key]} == {"name", "seed", "output"}
