"""Entry points and factories for nemo-run's command line: `nemorun siri train|sweep|chain ...`.

    nemorun siri train config=tiny config.budget.l_min=32 config.name=shorter
    nemorun siri train config=r1_7b run.executor=slurm run.executor.partition=gpu
    nemorun siri sweep config=tiny seeds=[1,2] "schedules=['cosine','constant']" run.executor=slurm
    nemorun siri chain config=tiny

`config=` takes a factory (a shipped config, or `file(path=my.yaml)`), `config.KEY=VALUE` overrides its keys in
nemo-run's syntax (`config.optimizer.lr*=0.5`); unknown keys and values out of range are refused as everywhere.
`run.executor=` takes `local`, `slurm` or `slurm_ssh(host=...,user=...,job_dir=...)`.

nemo-run reads annotations as they stand, and knows Optional but not `| None`: no `from __future__ import annotations`.
"""
# ruff: noqa: UP045

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Optional

import nemo_run as run
from rich.console import Console

from siri_megatron import config as configs
from siri_megatron.config import RunConfig, Section
from siri_megatron.config.launch import Scalar
from siri_megatron.errors import SiriError
from siri_megatron.launch.interpreter import runs_python
from siri_megatron.launch.job import Place
from siri_megatron.launch.spec import PACKAGE_ROOT
from siri_megatron.nemo import experiments
from siri_megatron.nemo.executors import slurm_executor, with_executor
from siri_megatron.nemo.launch import run_tasks
from siri_megatron.nemo.task import Task
from siri_megatron.nemo.tunnel import LocalTunnel, SSHTunnel

CONFIGS = PACKAGE_ROOT / "configs"


class Settings(dict[str, Any]):
    """A run config as nemo-run holds it: keys of any value, checked when the experiment is made."""

    def __init__(self, **keys: Any) -> None:
        super().__init__(keys)


def settings(config: Section, kind: Callable[..., Any] = Settings) -> Any:
    """A config in nemo-run's form: a buildable for each section, so that overrides reach every key."""
    return run.Config(kind, **{key: settings(value, dict) if isinstance(value, Section) else value
                               for key, value in ((key, getattr(config, key)) for key in type(config).model_fields)})


@run.cli.factory
def tiny() -> run.Config[Settings]:
    """The whole loop on two CPU cores."""
    return shipped("tiny")


@run.cli.factory
def tiny_bucketed() -> run.Config[Settings]:
    """The same in padded buckets."""
    return shipped("tiny-bucketed")


@run.cli.factory
def r1_1_5b() -> run.Config[Settings]:
    """DeepSeek-R1-Distill-Qwen-1.5B on 8 GPUs."""
    return shipped("r1-distill-1.5b")


@run.cli.factory
def r1_7b() -> run.Config[Settings]:
    """DeepSeek-R1-Distill-Qwen-7B on 16 GPUs."""
    return shipped("r1-distill-7b")


@run.cli.factory
def file(path: str) -> run.Config[Settings]:
    """Any config file."""
    return settings(configs.load(Path(path)))


def shipped(name: str) -> run.Config[Settings]:
    return settings(configs.load(CONFIGS / f"{name}.yaml"))


@run.cli.factory
def local() -> run.Config[run.LocalExecutor]:
    """This machine, one run at a time."""
    return run.Config(run.LocalExecutor)


@run.cli.factory
def slurm() -> run.Config[run.SlurmExecutor]:
    """Slurm from a login node; what is not given comes from launch.slurm."""
    return slurm_executor(LocalTunnel(job_dir="")).to_config()


@run.cli.factory
def slurm_ssh(host: str, user: str, job_dir: str, identity: Optional[str] = None) -> run.Config[run.SlurmExecutor]:
    """Slurm over ssh. job_dir: directory on the cluster for nemo-run's scripts."""
    return slurm_executor(SSHTunnel(host=host, user=user, job_dir=job_dir, identity=identity)).to_config()


LOCAL = run.Config(run.LocalExecutor)


@run.cli.entrypoint(namespace="siri", type="experiment", default_executor=LOCAL)
def train(ctx: run.cli.RunContext, config: Settings, directory: str = "", replay: str = "") -> None:
    """One training run.

    Args:
        config: the run.
        directory: where relative paths count from, on the nodes (the present directory).
        replay: train from the ledger of this run, without engines.
    """
    _start(ctx, config, directory, lambda checked, place: experiments.train(checked, place, _path(replay)))


@run.cli.entrypoint(namespace="siri", type="experiment", default_executor=LOCAL)
def sweep(ctx: run.cli.RunContext, config: Settings, schedules: Optional[list[str]] = None,
          seeds: Optional[list[int]] = None, directory: str = "", replay: str = "") -> None:
    """A run for each schedule and seed (or combination in launch.slurm.sweep), and a comparison of all."""
    axes: dict[str, Sequence[Scalar]] = {"budget.schedule": schedules or (), "seed": seeds or ()}
    given = {key: values for key, values in axes.items() if values}
    _start(ctx, config, directory, lambda checked, place: experiments.sweep(checked, place, given, _path(replay)))


@run.cli.entrypoint(namespace="siri", type="experiment", default_executor=LOCAL)
def chain(ctx: run.cli.RunContext, config: Settings, warm_start: str = str(CONFIGS / "tiny-warmstart.yaml"),
          stages: Optional[list[str]] = None, directory: str = "") -> None:
    """Convert, warm start, train, evaluate, export.

    Args:
        config: the run; its model is where the chain starts.
        warm_start: config of `siri sft`.
        stages: overrides of that config, key=value.
        directory: where relative paths count from, on the nodes (the present directory).
    """
    _start(ctx, config, directory, lambda checked, place: experiments.chain(checked, Path(warm_start), place,
                                                                           stages or ()))


def _start(ctx: run.cli.RunContext, raw: Settings, directory: str,
           plan: Callable[[RunConfig, Place], list[Task]]) -> None:
    """Check, plan, run.

    Raises:
        SystemExit: with siri's exit status, if it is not 0.
    """
    console = Console()
    try:
        config = with_executor(configs.validate(_plain(raw), "config"), ctx.executor)
        place = Place(Path(directory or os.getcwd()), runs_python(config))
        status = run_tasks(config.name, plan(config, place), ctx.executor, console, ctx.launch)
    except SiriError as error:
        console.print(f"siri: {error.render()}", markup=False, highlight=False)
        status = error.exit_code
    if status:
        raise SystemExit(status)


def _plain(value: Any) -> Any:
    """Of tuples, lists: what YAML would have given."""
    if isinstance(value, dict):
        return {key: _plain(one) for key, one in value.items()}
    return [_plain(one) for one in value] if isinstance(value, list | tuple) else value


def _path(text: str) -> Path | None:
    return Path(text).absolute() if text else None
