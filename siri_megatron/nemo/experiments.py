"""The tasks of an experiment: one run, a sweep, a chain. Pure; `run_tasks` hands them to nemo-run.

    train   the run
    sweep   one run for every combination of schedules and seeds, then a comparison of all (nemo-run's `afterany`)
    chain   convert, warm start, train, evaluate, export: each starts if the one before succeeded
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from siri_megatron import config as configs
from siri_megatron.config import RunConfig
from siri_megatron.config.launch import Scalar, variants
from siri_megatron.errors import ConfigError
from siri_megatron.launch.job import Place, make_job
from siri_megatron.nemo.task import Task
from siri_megatron.paths import RunDir
from siri_megatron.sft_config import load_sft

COMPARISON = "comparison"


def train(config: RunConfig, place: Place, replay: Path | None = None) -> list[Task]:
    """One run. replay: train from this run's ledger, without engines.

    Raises:
        ConfigError: the config has a sweep or a chain of jobs.
    """
    slurm = config.launch.slurm
    if slurm.sweep or slurm.chain > 1:
        raise ConfigError(f"launch.slurm.sweep={slurm.sweep}, chain={slurm.chain}, and `train` starts one job",
                          rule="nemo-run has an experiment for several runs, and requeues instead of a chain of jobs",
                          fix="use the experiment `sweep`; or leave both out")
    return [Task(config.name, make_job(config, place, replay))]


def sweep(config: RunConfig, place: Place, axes: dict[str, Sequence[Scalar]] | None = None,
          replay: Path | None = None) -> list[Task]:
    """A run for each combination of the axes (config key -> values; none: launch.slurm.sweep), and their comparison.

    Raises:
        ConfigError: no axes, or a combination that the config refuses.
    """
    raw = config.model_dump(mode="json")
    axes = axes or dict(config.launch.slurm.sweep)
    if not axes:
        raise ConfigError("a sweep of nothing", rule="a sweep has one run for each combination of values",
                          fix="give schedules and seeds, or launch.slurm.sweep")
    raw["launch"]["slurm"]["sweep"] = {key: list(values) for key, values in axes.items()}
    slurm = configs.validate(raw, "sweep").launch.slurm
    raw["launch"]["slurm"]["sweep"] = {}
    tasks = [task for overrides in variants(slurm, config.name)
             for task in train(configs.validate(configs.apply_overrides(raw, list(overrides)), "sweep"), place, replay)]
    return [*tasks, comparison(config, place, tasks)]


def comparison(config: RunConfig, place: Place, tasks: Sequence[Task]) -> Task:
    """One page, and its tables as CSV, of several runs, whatever became of them; in runs_dir/NAME-comparison."""
    job = make_job(changed(config, {"name": f"{config.name}-{COMPARISON}"}), place)
    argv = siri(place, "report", *(str(task.job.root) for task in tasks), "--out", str(job.root / "comparison.html"),
                "--plots", str(job.root))
    return Task(COMPARISON, job, argv, tuple(task.name for task in tasks), after="end")


def chain(config: RunConfig, warm_start: Path, place: Place, stages: Sequence[str] = ()) -> list[Task]:
    """From a Hugging Face model to the trained one: conversion (compared tensor by tensor), supervised warm start,
    training, evaluation, export. Everything lies in runs_dir, under the run's name.

    Args:
        config: the run; its model.path is where the chain starts.
        warm_start: config of `siri sft`; its model_path, output, name and runs_dir are set here.
        stages: overrides of that config.
    """
    runs = (place.directory / config.runs_dir).absolute()
    made = {name: runs / f"{config.name}-{name}" for name in ("megatron", "warm", "hf")}
    set_here = [f"model_path={config.model.path}", "init=null", f"name={config.name}-warm-start", f"runs_dir={runs}",
                f"output={made['warm']}", *stages]
    load_sft(warm_start, set_here)  # refuses now what it would refuse then
    model = config.model.model_dump(mode="json") | {"path": str(made["warm"]), "fingerprint": ""}
    job = make_job(changed(config, {"model": model}), place)
    last = RunDir(job.root).checkpoint(config.budget.steps)
    commands = {
        "convert": siri(place, "convert", "hf-to-megatron", str(config.model.path), str(made["megatron"]), "--verify",
                        "--force"),
        "warm-start": siri(place, "sft", str(warm_start), "--fresh", *set_here),
        config.name: (),
        "evaluate": siri(place, "eval", str(job.root)),
        "export": siri(place, "convert", "megatron-to-hf", str(last), str(made["hf"]), "--verify", "--force")}
    names = list(commands)
    return [Task(name, job, argv, tuple(names[index - 1:index])) for index, (name, argv) in
            enumerate(commands.items())]


def changed(config: RunConfig, top: dict[str, object]) -> RunConfig:
    return configs.validate(config.model_dump(mode="json") | top, "the experiment")


def siri(place: Place, *arguments: str) -> tuple[str, ...]:
    return (place.python, "-m", "siri_megatron.cli", *arguments)
