"""What a study runs: arms x seeds of one task, from a YAML file, every config of it checked before anything starts.

Invariants:
- paired: the runs of a seed differ in their arm alone; they share warm start, problem order and every other key.
- frozen: the fingerprint is that of everything the plan says, files it names included; it changes with any of them.
- within: a warm start is judged once, by the first run that has it, whatever the lanes do.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, ValidationError, model_validator

from siri_megatron.config import RunConfig, RunName, Section, describe, merge, read_yaml, validate
from siri_megatron.errors import ConfigError
from siri_megatron.sft_config import SftConfig, load_sft

BY_THE_STUDY = ("name", "runs_dir", "seed", "model", "engines.urls", "engines.key_file", "engines.count", "launch")
"""Keys that the study sets itself, run by run."""


class WarmStarts(Section):
    """The models that the runs start from: one directory, or one made from each seed."""

    path: Path | None = None
    """A model directory that is there."""
    config: Path | None = None
    """A `siri sft` config that makes one."""
    seeds: tuple[int, ...] = ()
    """Seeds of the warm starts made by `config`; the study's seeds are dealt out to them in equal blocks."""
    within: tuple[float, float] | None = None
    """Least and greatest accuracy of one before training: a study of models that have learnt nothing, or everything,
    shows nothing. Null: any."""

    @model_validator(mode="after")
    def _one_kind(self) -> WarmStarts:
        if (self.path is None) == (self.config is None):
            raise ValueError("give exactly one of path (a model directory) and config (of siri sft)")
        if bool(self.seeds) != (self.config is not None):
            raise ValueError(f"seeds={list(self.seeds)} with config={self.config}: seeds are those of the models that "
                             "config makes")
        if self.within and not 0 <= self.within[0] < self.within[1] <= 1:
            raise ValueError(f"within={list(self.within)}: two accuracies, from 0 to 1, the smaller first")
        return self


class StudyPlan(Section):
    """One study."""

    name: RunName
    """Its directory is runs/study/NAME."""
    kind: Literal["confirmatory", "exploratory"]
    """Confirmatory: decided by the rules of docs/study/plan.md. Exploratory: tables alone."""
    config: Path
    """The run config that every arm starts from."""
    settings: dict[str, Any] = Field(default_factory=dict)
    """Keys over it, for all arms."""
    warm_starts: WarmStarts
    seeds: tuple[int, ...] = Field(min_length=1)
    """One run of every arm for each."""
    arms: dict[RunName, dict[str, Any]] = Field(min_length=1)
    """Keys over both, by arm."""
    timeout_s: float = Field(3600, gt=0)
    """Seconds that one run may take."""
    engine_start_s: float = Field(300, gt=0)
    """Seconds that an engine may take to start."""

    @model_validator(mode="after")
    def _distinct(self) -> StudyPlan:
        for key, given in (("seeds", self.seeds), ("warm_starts.seeds", self.warm_starts.seeds)):
            if len(set(given)) < len(given):
                raise ValueError(f"{key}={list(given)} has one twice: each makes runs of its own")
        if len(self.warm_starts.seeds) > len(self.seeds):
            raise ValueError(f"{len(self.warm_starts.seeds)} warm starts for {len(self.seeds)} seeds: a warm start "
                             "serves one seed at least")
        return self

    def warm_of(self, seed: int) -> int:
        """Seed of the warm start that the runs of `seed` have; 0 where it is a directory that is there."""
        made = self.warm_starts.seeds
        return made[self.seeds.index(seed) * len(made) // len(self.seeds)] if made else 0


def load_plan(path: Path) -> StudyPlan:
    """Read a plan and check every config that it makes.

    Raises:
        ConfigError: the plan, or the config of an arm or of the warm start, is wrong; names which.
    """
    try:
        plan = StudyPlan.model_validate(_beside(read_yaml(path), path.parent))
    except ValidationError as error:
        raise ConfigError(f"{path}: " + describe(error), rule="keys, types and ranges as in study/plan.py",
                          fix="correct the keys named above") from None
    for name, settings in {"settings": plan.settings, **plan.arms}.items():
        _refuse_own_keys(settings, f"{path}: {name}")
    for arm in plan.arms:
        config = run_config(plan, arm, plan.seeds[0], Path("runs"), Path("model"))
        if plan.warm_starts.within and not config.evaluation.at_start:
            raise ConfigError(f"{path}: warm_starts.within={list(plan.warm_starts.within)}, but arm {arm} has "
                              "evaluation.at_start=false", rule="the evaluation before training judges a warm start",
                              fix="evaluation.at_start=true, or leave within out")
    if plan.warm_starts.config:
        warm_config(plan, plan.warm_starts.seeds[0], Path("runs"))
    return plan


def _beside(raw: dict[str, Any], directory: Path) -> dict[str, Any]:
    """Files that a plan names lie where they are seen from it; as seen from here afterwards."""
    def place(name: object) -> object:
        return os.path.normpath(directory / name) if isinstance(name, str) else name

    warm = raw.get("warm_starts")
    if isinstance(warm, dict):
        files = {key: place(warm[key]) for key in ("path", "config") if key in warm}
        raw = raw | {"warm_starts": warm | files}
    return raw | {"config": place(raw.get("config"))}


def _refuse_own_keys(settings: Mapping[str, Any], origin: str) -> None:
    for key in BY_THE_STUDY:
        value: Any = settings
        for part in key.split("."):
            value = value.get(part) if isinstance(value, Mapping) else None
        if value is not None:
            raise ConfigError(f"{origin} sets {key}={value}", fix="leave it out",
                              rule="the study names, places and starts its runs; those of a seed differ in their arm")


def run_config(plan: StudyPlan, arm: str, seed: int, place: Path, model: Path, *,
               engine: Mapping[str, Any] | None = None) -> RunConfig:
    """The config of one run.

    Args:
        place: directory of the study's runs.
        model: its warm start.
        engine: `urls` and `key_file` of the engine that samples for it.

    Raises:
        ConfigError: the arm's keys do not go together.
    """
    own = {"name": f"{arm}-{seed}", "runs_dir": str(place), "seed": seed, "model": {"path": str(model)},
           "engines": {"count": 1}, "launch": {}}
    raw = merge(merge(merge(read_yaml(plan.config), plan.settings), plan.arms[arm]), own)
    return validate(merge(raw, {"engines": engine or {}}), f"arm {arm} of study {plan.name}")


def warm_config(plan: StudyPlan, seed: int, place: Path) -> SftConfig:
    """The config that makes a warm start."""
    assert plan.warm_starts.config
    own = {"name": f"warm-{seed}", "runs_dir": place, "output": warm_path(plan, seed, place), "seed": seed}
    return load_sft(plan.warm_starts.config, [f"{key}={value}" for key, value in own.items()])


def warm_path(plan: StudyPlan, seed: int, place: Path) -> Path:
    """Directory of a warm start."""
    return plan.warm_starts.path or place / "models" / str(seed)


def fingerprint(plan: StudyPlan) -> str:
    """16 hex digits over the plan, the config it starts from, and how its warm starts are made (or their weights)."""
    warm = plan.warm_starts
    made = read_yaml(warm.config) if warm.config else _digest(warm.path / "model.safetensors" if warm.path else Path())
    elsewhere = {"timeout_s", "engine_start_s", "config", "warm_starts"}
    said: dict[str, Any] = {"plan": plan.model_dump(mode="json", exclude=elsewhere), "config": read_yaml(plan.config),
                            "warm": made, "warm_seeds": warm.seeds}
    if warm.within:
        said["within"] = warm.within
    return hashlib.sha256(json.dumps(said, sort_keys=True, default=str).encode()).hexdigest()[:16]


def _digest(path: Path) -> str:
    if not path.is_file():
        raise ConfigError(f"warm_starts.path: {path} is not there", rule="runs start from a model directory",
                          fix="give the directory of one, or make it with `siri sft`")
    return hashlib.sha256(path.read_bytes()).hexdigest()
