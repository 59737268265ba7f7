"""What `siri eval DIR_OR_RUN` evaluates, and under which config."""

from __future__ import annotations

import re
from argparse import Namespace
from pathlib import Path
from typing import Any

from siri_megatron import config as configs
from siri_megatron.config import RunConfig
from siri_megatron.config.data import HUB
from siri_megatron.errors import ConfigError
from siri_megatron.launch.progress import exports, holds_run
from siri_megatron.paths import RunDir

RULE = "siri eval takes a run directory with exports, or a Hugging Face model directory"


def evaluation_config(args: Namespace) -> tuple[RunConfig, str]:
    """The config of the evaluation (a run of its own, beside the evaluated one) and its tag.

    Raises:
        ConfigError: nothing to evaluate there, or no config says on which problems.
    """
    model = model_directory(args.target)
    tag = re.sub(r"[^\w.-]", "-", model.name)
    raw = configs.apply_overrides(configs.read_yaml(args.config or config_of(model)), args.overrides)
    raw = _with_options(raw, args, model)
    if not any(override.startswith("name=") for override in args.overrides):
        names = _names(Path(raw.get("runs_dir", "runs")), f"{raw.get('name', 'model')}-eval-{tag}")
        if args.resume and len(names) == 1:
            raise ConfigError(f"there is no evaluation {names[0]} to go on with", rule="--resume goes on with the "
                              "newest evaluation of this model", fix="leave --resume out, or give its name=...")
        raw["name"] = names[-2 if args.resume else -1]
    return configs.validate(raw, str(args.target)), tag


def model_directory(target: Path) -> Path:
    """The model that is meant: the directory itself, or the newest export of a run."""
    if not target.is_dir():
        raise ConfigError(f"{target} {'is a file' if target.exists() else 'does not exist'}", rule=RULE,
                          fix="give runs/NAME, or runs/NAME/export/TAG, or a model directory")
    if not RunDir(target).config.is_file():
        return target
    found = exports(RunDir(target))
    if not found:
        raise ConfigError(f"run {target} has no export", rule=RULE,
                          fix="wait for its first phase end, or give the model directory that it started from")
    return found[-1]


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
    """The run's config with this model and these options. Its training prompts are nobody's business here."""
    given = {"budgets": args.budgets, "samples": args.samples}
    given = {key: value for key, value in given.items() if value is not None}
    evaluation = {**raw.get("evaluation", {}), **given}
    evaluation["suites"] = [suite | given for suite in _suites(evaluation.get("suites") or [], args.suites)]
    if args.problems is not None or args.suites:
        evaluation["problems"] = args.problems or 0
    data = {key: value for key, value in raw.get("data", {}).items() if key not in ("train", "fingerprint")}
    return raw | {"data": data, "evaluation": evaluation, "model": {**raw.get("model", {}), "path": str(model)}}


def _suites(there: list[dict[str, Any]], wanted: list[str] | None) -> list[dict[str, Any]]:
    """The suites of the config, or those of them that are wanted; a preset's name is a suite, too."""
    known = {name: {"name": name, "data": {"preset": name, "split": hub.get("split", "test")}}
             for name, hub in HUB.items()} | {suite["name"]: suite for suite in there}
    if missing := [name for name in wanted or () if name not in known]:
        raise ConfigError(f"there is no suite {missing[0]!r}", rule="--suite names one of evaluation.suites, or a "
                          "known data set", fix=f"take one of {', '.join(known)}")
    return there if wanted is None else [known[name] for name in dict.fromkeys(wanted)]


def _names(runs_dir: Path, name: str) -> list[str]:
    """The names of the evaluations that are there already (`name`, `name-2`, ...), then the next free one."""
    names = [name]
    while holds_run(RunDir(runs_dir / names[-1])):
        names.append(f"{name}-{len(names) + 1}")
    return names
