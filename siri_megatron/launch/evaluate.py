"""What `siri eval DIR_OR_RUN` evaluates, and under which config."""

from __future__ import annotations

import re
from argparse import Namespace
from pathlib import Path
from typing import Any

from siri_megatron import config as configs
from siri_megatron.config import RunConfig
from siri_megatron.errors import ConfigError
from siri_megatron.launch.progress import holds_run
from siri_megatron.paths import RunDir

RULE = "siri eval takes a run directory with exports, or a Hugging Face model directory"


def evaluation_config(args: Namespace) -> tuple[RunConfig, str]:
    """The config of the evaluation (a run of its own, beside the evaluated one) and its tag.

    Raises:
        ConfigError: nothing to evaluate there, or no config says on which problems.
    """
    model = model_directory(args.target)
    tag = re.sub(r"[^\w.-]", "-", model.name)
    raw = configs.read_yaml(args.config or config_of(model))
    raw = configs.apply_overrides(_with_options(raw, args, model), args.overrides)
    if not any(override.startswith("name=") for override in args.overrides):
        raw["name"] = _free_name(Path(raw.get("runs_dir", "runs")), f"{raw.get('name', 'model')}-eval-{tag}")
    return configs.validate(raw, str(args.target)), tag


def model_directory(target: Path) -> Path:
    """The model that is meant: the directory itself, or the newest export of a run."""
    if not target.is_dir():
        raise ConfigError(f"{target} {'is a file' if target.exists() else 'does not exist'}", rule=RULE,
                          fix="give runs/NAME, or runs/NAME/export/TAG, or a model directory")
    if not RunDir(target).config.is_file():
        return target
    exports = sorted(RunDir(target).export.glob("*/config.json"), key=lambda path: path.stat().st_mtime)
    if not exports:
        raise ConfigError(f"run {target} has no export", rule=RULE,
                          fix="wait for its first phase end, or give the model directory that it started from")
    return exports[-1].parent


def config_of(model: Path) -> Path:
    """The config of the run that exported the model (runs/NAME/export/TAG).

    Raises:
        ConfigError: it does not lie there.
    """
    run = RunDir(model.absolute().parent.parent)
    if model.absolute().parent == run.export and run.config.is_file():
        return run.config
    raise ConfigError(f"{model} is not an export of a run, so nothing says which problems to evaluate on",
                      rule="problems, prompts and engines come from a run config", fix="add --config configs/tiny.yaml")


def _with_options(raw: dict[str, Any], args: Namespace, model: Path) -> dict[str, Any]:
    options = {"budgets": args.budgets, "samples": args.samples, "problems": args.problems}
    evaluation = {**raw.get("evaluation", {}), **{key: value for key, value in options.items() if value is not None}}
    return raw | {"evaluation": evaluation, "model": {**raw.get("model", {}), "path": str(model)}}


def _free_name(runs_dir: Path, name: str) -> str:
    """`name`, or `name-2`, ... if an evaluation of that name is there already."""
    number = 1
    while holds_run(RunDir(runs_dir / (candidate := name if number == 1 else f"{name}-{number}"))):
        number += 1
    return candidate
