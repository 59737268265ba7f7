"""What a run consists of, before anything starts: config and task in, the list of processes out. Pure.

Invariants:

- mains_decide: a plan has at least one main process (learners, or the driver); services never end a run by success.
- whole_world: learner ranks 0..world-1 each appear once, with the world size in their argv.
- engines_first: engines, collector, learners, driver stand in this order; engines and learners load side by side.
- replay_needs_no_engines, rollout_needs_no_learners: the two debugging modes drop the other half.
- clean_environment: rank variables of an outer launcher and proxies never reach a child.
- apart_on_gpus: learners have the first devices, one each; each engine `engines.tp` further ones of its own.
- bound: with `learner.pin_cores`, learner i is bound to core i modulo the number of cores (launch.cores says which).
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from siri_megatron.config import EngineConfig, LearnerConfig, RunConfig
from siri_megatron.launch.cores import share_cores
from siri_megatron.paths import RunDir
from siri_megatron.rollout.engine_args import DROPPED, EngineLaunch, engine_launch
from siri_megatron.rollout.health import Rules
from siri_megatron.sft_config import SftConfig

Task = Literal["train", "replay", "rollout-only", "eval", "sft"]
Kind = Literal["engine", "service", "main"]

LEFTOVERS = (*DROPPED, "GROUP_RANK", "ROLE_RANK")
LEFTOVER_PREFIXES = ("TORCHELASTIC_", "VLLM_CPU_")
PACKAGE_ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Machine:
    """What the plan needs to know about this machine."""

    cores: tuple[int, ...]
    device: Literal["cpu", "cuda"] = "cpu"
    python: str = sys.executable
    gpus: tuple[str, ...] = ()
    """Devices of a `cuda` machine, by the names that CUDA_VISIBLE_DEVICES takes."""


@dataclass(frozen=True)
class ProcessSpec:
    """One process. `env` is laid over the cleaned environment of the supervisor; `url` is an engine's address, `tp` the
    number of its workers. An engine without `argv` was started by somebody else."""

    role: str
    kind: Kind
    argv: tuple[str, ...]
    log: Path
    env: Mapping[str, str] = field(default_factory=dict)
    cores: tuple[int, ...] = ()
    url: str = ""
    tp: int = 1

    def to_json(self) -> dict[str, Any]:
        return {"role": self.role, "kind": self.kind, "argv": list(self.argv), "env": dict(self.env),
                "log": str(self.log), "cores": list(self.cores), "url": self.url, "tp": self.tp}


@dataclass(frozen=True)
class ProcessPlan:
    """Everything that the supervisor starts, and how long it may take.

    Attributes:
        steps: training steps of a complete run; 0 where the task does not count steps.
        model: name under which the engines serve the policy.
        health: how long engines may be silent and how often they are restarted.
        min_engines: the run goes on while so many are up.
        silence_s: without a pulse (`launch/pulse.py`) after which a process other than an engine hangs.
        key_file: whence the run's key is taken; None: it is made.
        stop_grace_s: that learners get to reach a step boundary and commit when a stop is asked for.
        end_grace_s: between SIGTERM and SIGKILL when everything is ended.
    """

    task: Task
    run_dir: RunDir
    processes: tuple[ProcessSpec, ...]
    steps: int = 0
    model: str = "policy"
    health: Rules = field(default_factory=lambda: _health(EngineConfig()))
    min_engines: int = 1
    silence_s: float = 30.0
    key_file: Path | None = None
    stop_grace_s: float = 10.0
    end_grace_s: float = 4.0

    def of(self, kind: Kind) -> tuple[ProcessSpec, ...]:
        return tuple(process for process in self.processes if process.kind == kind)


def plan_run(config: RunConfig, task: Task, machine: Machine, *, ports: Sequence[int] = (), given: Sequence[int] = (),
             replay: Path | None = None, driver: Sequence[str] = ()) -> ProcessPlan:
    """The processes of a training run, a replay, a rollout-only run or an evaluation.

    Args:
        ports: one a engine (unused for a replay).
        given: tensor-parallel sizes of `engines.urls`, which then are the engines.
        replay: root of the run whose ledger is trained from.
        driver: further arguments of the driver (rollout-only, eval).
    """
    paths = RunDir(config.run_dir)
    gpus = machine.gpus[config.learner.world_size:] if task == "train" else machine.gpus
    engines = [] if task == "replay" else [_engine(config, paths, i, port, replace(machine, gpus=gpus))
                                           for i, port in enumerate(ports)]
    if task != "replay":
        engines += [_given(paths, i, *at) for i, at in enumerate(zip(config.engines.urls, given, strict=False))]
    services = [] if task == "replay" else [_collector(paths, machine)]
    extra = ("--replay", str(replay)) if replay else ()
    learners = replace(machine, cores=share_cores(config, machine.cores).learners)
    mains = (_learners("siri_megatron.learner.main", config.learner, paths, learners, config.engines.host, extra)
             if task in ("train", "replay") else [_driver(paths, machine, task, driver)])
    return ProcessPlan(task=task, run_dir=paths, processes=(*engines, *services, *mains),
                       steps=0 if task == "eval" else config.budget.steps,
                       health=_health(config.engines), min_engines=config.engines.min_engines,
                       silence_s=config.learner.heartbeat_timeout_s, stop_grace_s=config.launch.stop_grace_s,
                       key_file=config.engines.key_file)


def _health(engines: EngineConfig) -> Rules:
    return Rules(suspect_s=engines.suspect_s, dead_s=engines.dead_s, start_timeout_s=engines.start_timeout_s,
                 hang_s=engines.hang_s, max_restarts=engines.max_restarts, restart_backoff_s=engines.restart_backoff_s)


def plan_sft(config: SftConfig, machine: Machine) -> ProcessPlan:
    """The processes of a supervised warm start: learners only."""
    paths = RunDir(config.run_dir)
    learners = _learners("siri_megatron.learner.sft_main", config.learner, paths, machine, "127.0.0.1", ())
    return ProcessPlan(task="sft", run_dir=paths, processes=tuple(learners), steps=config.steps,
                       silence_s=config.learner.heartbeat_timeout_s)


def _engine(config: RunConfig, paths: RunDir, index: int, port: int, machine: Machine) -> ProcessSpec:
    """machine: with the devices that are the engines', `tp` for each in turn."""
    first = index * config.engines.tp
    launch: EngineLaunch = engine_launch(config, index, port, key_file=paths.key.absolute(), cores=machine.cores,
                                         device=machine.device, python=machine.python,
                                         gpus=machine.gpus[first:first + config.engines.tp])
    role = f"engine-{index}"
    return ProcessSpec(role=role, kind="engine", argv=launch.argv, env=launch.env, log=_log(paths, role),
                       url=f"http://{config.engines.host}:{port}", tp=config.engines.tp)


def _given(paths: RunDir, index: int, url: str, tp: int) -> ProcessSpec:
    role = f"engine-{index}"
    return ProcessSpec(role=role, kind="engine", argv=(), log=_log(paths, role), url=url, tp=tp)


def _collector(paths: RunDir, machine: Machine) -> ProcessSpec:
    argv = (machine.python, "-m", "siri_megatron.rollout.service", str(paths.root))
    return ProcessSpec(role="collector", kind="service", argv=argv, env={"OMP_NUM_THREADS": "1"},
                       log=_log(paths, "collector"))


def _learners(module: str, learner: LearnerConfig, paths: RunDir, machine: Machine, host: str,
              extra: Sequence[str]) -> list[ProcessSpec]:
    world = learner.world_size
    env = _learner_environment(learner, machine, host)
    return [ProcessSpec(role=f"learner-{rank}", kind="main", env=env, log=_log(paths, f"learner-{rank}"),
                        argv=(machine.python, "-m", module, str(paths.root),
                              "--rank", str(rank), "--world", str(world), *extra),
                        cores=(machine.cores[rank % len(machine.cores)],) if learner.pin_cores else ())
            for rank in range(world)]


def _learner_environment(learner: LearnerConfig, machine: Machine, host: str) -> dict[str, str]:
    env = {"OMP_NUM_THREADS": str(learner.threads), "TOKENIZERS_PARALLELISM": "false"}
    if host in ("127.0.0.1", "localhost"):  # gloo resolves the host name otherwise, which many machines cannot
        env["GLOO_SOCKET_IFNAME"] = "lo"
    if machine.device == "cuda":  # megatron-core asks for it wherever TP or CP overlaps communication
        env["CUDA_DEVICE_MAX_CONNECTIONS"] = "1"
    return env


def _driver(paths: RunDir, machine: Machine, task: Task, extra: Sequence[str]) -> ProcessSpec:
    argv = (machine.python, "-m", "siri_megatron.launch.driver", str(paths.root), "--task", task, *extra)
    return ProcessSpec(role="driver", kind="main", argv=argv, env={"OMP_NUM_THREADS": "1"}, log=_log(paths, "driver"))


def _log(paths: RunDir, role: str) -> Path:
    return paths.logs / f"{role}.log"


def child_environment(base: Mapping[str, str], own: Mapping[str, str]) -> dict[str, str]:
    """The whole environment of a child: the supervisor's without leftovers, then the child's own variables.

    The package's root goes on PYTHONPATH, because `vllm serve` imports our extension by name from wherever it runs.
    """
    clean = {name: value for name, value in base.items()
             if name not in LEFTOVERS and not name.startswith(LEFTOVER_PREFIXES)}
    path = [str(PACKAGE_ROOT), *filter(None, [base.get("PYTHONPATH")])]
    return clean | {"PYTHONPATH": ":".join(path), "PYTHONUNBUFFERED": "1"} | dict(own)
