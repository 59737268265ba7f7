"""`siri plan`: what a run will take, before it is queued. Needs the model's config.json and no weights; no torch."""

from __future__ import annotations

import json
from argparse import Namespace
from pathlib import Path
from typing import Any

from rich.console import Console

from siri_megatron import config as configs
from siri_megatron.config import RunConfig
from siri_megatron.errors import ConfigError
from siri_megatron.estimate import render
from siri_megatron.estimate.calibration import Calibration, calibration_key
from siri_megatron.estimate.document import document
from siri_megatron.estimate.gpus import Assumptions, find_gpu
from siri_megatron.estimate.lengths import Lengths
from siri_megatron.estimate.rates import NOMINAL_CORE, Rates, gpu_rates
from siri_megatron.estimate.room import host_of
from siri_megatron.estimate.run import RunEstimate, estimate
from siri_megatron.estimate.search import Split, best_split, changes, proposal
from siri_megatron.estimate.setup import Machine, Setup
from siri_megatron.launch.calibrate import calibrate_by_running, calibrate_from, read_calibration
from siri_megatron.launch.lengths import default_lengths, read_lengths
from siri_megatron.launch.memory import memory_limit
from siri_megatron.launch.preflight import this_machine
from siri_megatron.learner.architecture import read_config
from siri_megatron.learner.layout import check_layout

GPUS_PER_NODE = 8
DEFAULT_GPU = "h100"
WORTH_SAYING = 0.97
"""A split is proposed if a step takes at most this share of the time."""
SHORT = ("tp", "pp", "dp", "cp", "vpp", "recompute", "sequence_parallel", "distributed_optimizer", "overlap")
UNPLACED = ("launch.nodes=1", *(f"launch.{name}.{key}" for name in ("learner", "engines")
                                for key in ("nodes=1", "tasks_per_node=null", "gpus_per_node=0")))
"""Nodes and GPUs in `launch` belong to the config's own layout; a plan is about others as well, and proposes some."""


def plan(args: Namespace, console: Console) -> int:
    """`siri plan`. Exit status 0 also where the run does not fit: that is what was asked.

    Raises:
        SiriError: config, layout, GPU name, lengths or calibration cannot be used.
    """
    config = configs.load(args.config, [*UNPLACED, *args.overrides])
    calibration = _calibration(args, config)
    runs = []
    for text in ("", *(args.compare or ())):
        other = configs.load(args.config, [*UNPLACED, *args.overrides, *overrides(text)])
        runs.append((text, estimate(setup_of(other, args, calibration))))
    if args.json:
        console.out(json.dumps(_document(runs), indent=1), highlight=False)
    elif len(runs) > 1:
        console.print(render.title(runs[0][1]), highlight=False)
        console.print(render.compare([(text or "CONFIG", run) for text, run in runs]))
        for text, run in runs:
            console.print(*(f"{text or 'CONFIG'} does not fit: {misfit}" for misfit in run.misfits), sep="\n",
                          highlight=False, end="\n" if run.misfits else "")
    else:
        run = runs[0][1]
        console.print(render.report(run, fix=_fix(run), split=_split(run)))
        _say_extrapolated(run.setup, calibration, console)
    return 0


def setup_of(config: RunConfig, args: Namespace, calibration: Calibration | None) -> Setup:
    """The run on the machine that the command line names."""
    context = config.data.max_prompt_tokens + config.budget.l_max
    arch = check_layout(read_config(config.model.path), config.learner, context=context)
    given = read_lengths(args.lengths, config) if args.lengths else None
    lengths: Lengths = given or (calibration.lengths if calibration else default_lengths(config))
    return Setup(config, arch, machine_of(config, args, calibration), lengths, _kept(config, calibration))


def machine_of(config: RunConfig, args: Namespace, calibration: Calibration | None) -> Machine:
    """GPUs where the command line names one or the run needs one, else this machine's cores."""
    rates: Rates | None = calibration.rates if calibration else None
    gpu = args.gpu or (DEFAULT_GPU if _needs_gpu(config, calibration) else None)
    if gpu is None:
        return Machine(rates or NOMINAL_CORE, None, 1, 0, len(this_machine().cores), memory_limit())
    found = find_gpu(gpu)
    return Machine(rates or gpu_rates(found, config.model.dtype, Assumptions()), found, args.nodes,
                   args.gpus_per_node or GPUS_PER_NODE)


def overrides(text: str) -> list[str]:
    """`tp=2,pp=2,engines=4` as overrides of the config; other keys are dotted as usual.

    Raises:
        ConfigError: a part is no key=value.
    """
    found = []
    for part in text.split(",") if text else []:
        key, given, value = part.partition("=")
        if not given:
            raise ConfigError(f"--compare {text}: {part!r} is no key=value", rule="a layout is key=value,key=value,...",
                              fix="for example --compare tp=2,dp=2 --compare pp=4,engines=2")
        found.append(f"{f'learner.{key}' if key in SHORT else {'engines': 'engines.count'}.get(key, key)}={value}")
    return found


def _needs_gpu(config: RunConfig, calibration: Calibration | None) -> bool:
    return (config.model.dtype != "float32" or config.model.spec == "te" or config.push.backend == "nccl"
            if calibration is None else calibration.machine["device"] == "cuda")


def _kept(config: RunConfig, calibration: Calibration | None) -> tuple[tuple[int, float], ...]:
    """Share of groups with a signal, by cap: measured, or that of solve rates spread evenly over 0..1: 1 - 2/(G+1)."""
    if not config.algorithm.drop_uniform_groups:
        return ((config.budget.l_max, 1.0),)
    even = 1 - 2 / (config.rollout.samples_per_prompt + 1)
    return calibration.kept if calibration else ((config.budget.l_max, even),)


def _calibration(args: Namespace, config: RunConfig) -> Calibration | None:
    """A fresh calibration if one is asked for; else the named one, or this machine's own; None where a GPU is named."""
    path: Path = args.calibration or config.runs_dir / "calibration.json"
    if args.calibrate:
        return calibrate_by_running(args, config, path)
    if args.calibrate_from:
        return calibrate_from(args.calibrate_from, path, config.runs_dir)
    if args.gpu and not args.calibration:
        return None
    return read_calibration(path, named=args.calibration is not None)


def _fix(run: RunEstimate) -> list[str] | None:
    if not run.misfits:
        return None
    if (memory := run.setup.machine.memory) is not None:
        return [host_of(run.setup).nearest(run.setup.config, memory)]
    found = proposal(run.setup)
    return list(changes(found.config, run.setup.config)) if found else None


def _split(run: RunEstimate) -> Split | None:
    if run.setup.machine.gpu is None or run.misfits:
        return None
    middle = run.points[len(run.points) // 2].step
    split = best_split(run.setup, middle.cap)
    return split if split and split.overrides and split.step_s < WORTH_SAYING * middle.step_s else None


def _document(runs: list[tuple[str, RunEstimate]]) -> dict[str, Any]:
    """The first run, with what would be better; compared ones below it."""
    first, split = runs[0][1], _split(runs[0][1])
    return document(first) | {
        "proposal": _fix(first), "split": split and {"overrides": list(split.overrides), "step_s": split.step_s,
                                                     "cap": split.cap},
        "compared": [{"layout": text, **document(run)} for text, run in runs[1:]]}


def _say_extrapolated(setup: Setup, calibration: Calibration | None, console: Console) -> None:
    if calibration and (key := calibration_key(setup)) != calibration.key:
        differing = ", ".join(name for name in key if key[name] != calibration.key.get(name))
        console.print(f"  calibrated with another {differing}: extrapolated by operations and bytes", highlight=False)
