"""What a run consists of, before anything starts: config and task in, the list of processes out. Pure.

Invariants:

- mains_decide: a plan has at least one main process (learners, or the driver); services never end a run by success.
- whole_world: learner ranks 0..world-1 each appear once, with the world size in their argv.
- engines_first: engines, collector, learners, driver stand in this order; engines and learners load side by side.
- replay_needs_no_engines, rollout_needs_no_learners: the two debugging modes drop the other half.
- clean_environment: rank variables of an outer launcher and proxies never reach a child.
- apart_on_gpus: learners have the first devices, one each; each engine `engines.tp` further ones of its own (unless
  `launch.placement=turns`).
- bound: with `learner.pin_cores`, learner i is bound to core i modulo the number of cores (launch.cores says which);
  on several nodes that counts on each.
- placed: on several nodes each process has the node and GPUs of its seat (`placement`), and talks over its node's
  address and interface; on one node all have node 0.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from siri_megatron.config import ComponentConfig, EngineConfig, LearnerConfig, RunConfig, signal_lead_s
from siri_megatron.config.launch import END_S
from siri_megatron.launch.cores import share_cores
from siri_megatron.launch.placement import Seat, engine_seats, engines_on, learner_seats, own_nodes
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
class Node:
    """What the plan needs to know about a node of the run: its machine, and how the others reach it."""

    machine: Machine
    address: str = "127.0.0.1"
    interface: str = ""


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
    node: int = 0

    def to_json(self) -> dict[str, Any]:
        return {"role": self.role, "kind": self.kind, "argv": list(self.argv), "env": dict(self.env),
                "log": str(self.log), "cores": list(self.cores), "url": self.url, "tp": self.tp, "node": self.node}

    @classmethod
    def from_json(cls, raw: Mapping[str, Any]) -> ProcessSpec:
        return cls(**{**raw, "argv": tuple(raw["argv"]), "log": Path(raw["log"]), "cores": tuple(raw["cores"])})


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
        notice_grace_s: the same where a scheduler gave notice (`interrupt` in the run directory).
        hang_timeout_s: without a step or an event once training has begun; None: no limit.
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
    notice_grace_s: float = 10.0
    hang_timeout_s: float | None = None
    end_grace_s: float = 4.0

    def of(self, kind: Kind) -> tuple[ProcessSpec, ...]:
        return tuple(process for process in self.processes if process.kind == kind)


def plan_run(config: RunConfig, task: Task, machine: Machine, *, ports: Sequence[int] = (), given: Sequence[int] = (),
             replay: Path | None = None, driver: Sequence[str] = (), nodes: Sequence[Node] = ()) -> ProcessPlan:
    """The processes of a training run, a replay, a rollout-only run or an evaluation.

    Args:
        machine: the supervisor's.
        ports: one a engine (unused for a replay).
        given: tensor-parallel sizes of `engines.urls`, which then are the engines.
        replay: root of the run whose ledger is trained from.
        driver: further arguments of the driver (rollout-only, eval).
        nodes: those of a run on several nodes, the supervisor's first; empty: everything on this one.
    """
    paths = RunDir(config.run_dir)
    there = nodes or (Node(machine, config.engines.host),)
    seats = _engine_seats(config, task, machine, placed=bool(nodes))
    views = [_as_on(config, node, number if nodes else None) for number, node in enumerate(there)]
    engines = [] if task == "replay" else [_engine(views[seats[i].node], paths, i, port, seats[i], there[seats[i].node])
                                           for i, port in enumerate(ports)]
    if task != "replay":
        engines += [_given(paths, i, *at) for i, at in enumerate(zip(config.engines.urls, given, strict=False))]
    services = [] if task == "replay" else [_collector(paths, machine)]
    extra = ("--replay", str(replay)) if replay else ()
    alone = None if nodes else [Seat(0, rank) for rank in range(config.learner.world_size)]
    mains = (_learners("siri_megatron.learner.main", config.learner, paths, there, extra, config.launch.learner,
                       alone or learner_seats(config), _learner_cores(config, there))
             if task in ("train", "replay") else [_driver(paths, machine, task, driver)])
    processes = [replace(one, env={**config.launch.env, **one.env}) for one in (*engines, *services, *mains)]
    return ProcessPlan(task=task, run_dir=paths, processes=tuple(processes),
                       steps=0 if task == "eval" else config.budget.steps,
                       health=_health(config.engines), min_engines=config.engines.min_engines,
                       silence_s=config.learner.heartbeat_timeout_s, stop_grace_s=config.launch.stop_grace_s,
                       key_file=config.engines.key_file,
                       notice_grace_s=signal_lead_s(config) - END_S, hang_timeout_s=config.launch.hang_timeout_s)


def _health(engines: EngineConfig) -> Rules:
    return Rules(suspect_s=engines.suspect_s, dead_s=engines.dead_s, start_timeout_s=engines.start_timeout_s,
                 hang_s=engines.hang_s, max_restarts=engines.max_restarts, restart_backoff_s=engines.restart_backoff_s)


def plan_sft(config: SftConfig, machine: Machine) -> ProcessPlan:
    """The processes of a supervised warm start: learners only."""
    paths = RunDir(config.run_dir)
    seats = [Seat(0, rank) for rank in range(config.learner.world_size)]
    learners = _learners("siri_megatron.learner.sft_main", config.learner, paths, (Node(machine),), (),
                         ComponentConfig(), seats, [machine.cores])
    return ProcessPlan(task="sft", run_dir=paths, processes=tuple(learners), steps=config.steps,
                       silence_s=config.learner.heartbeat_timeout_s)


def _engine_seats(config: RunConfig, task: Task, machine: Machine, *, placed: bool) -> list[Seat]:
    """Of all engines. On one machine each in turn has `tp` GPUs, unless a launch section for one node shares them out
    between engines and learners."""
    if placed or (task == "train" and config.launch.nodes == 1 and config.launch.engines.gpus_per_node):
        return engine_seats(config)
    first, tp = config.learner.world_size if task == "train" else 0, config.engines.tp
    gpus = range(first, len(machine.gpus))
    return [Seat(0, index, tuple(gpus[index * tp:(index + 1) * tp])) for index in range(config.engines.count)]


def _learner_cores(config: RunConfig, nodes: Sequence[Node]) -> list[tuple[int, ...]]:
    """Of each node those that learners use: all where they have nodes of their own."""
    if own_nodes(config) and len(nodes) > 1:
        return [node.machine.cores for node in nodes]
    return [share_cores(config, node.machine.cores).learners for node in nodes]


def _engine(config: RunConfig, paths: RunDir, index: int, port: int, seat: Seat, node: Node) -> ProcessSpec:
    machine, component = node.machine, config.launch.engines
    launch: EngineLaunch = engine_launch(config, index, port, key_file=paths.key.absolute(), cores=machine.cores,
                                         device=machine.device, python=component.python or machine.python,
                                         gpus=[machine.gpus[gpu] for gpu in seat.gpus] if machine.gpus else ())
    role = f"engine-{index}"
    return ProcessSpec(role=role, kind="engine", argv=launch.argv, log=_log(paths, role), node=seat.node,
                       env=launch.env | _interface(node) | component.env, url=f"http://{node.address}:{port}",
                       tp=config.engines.tp)


def _as_on(config: RunConfig, node: Node, number: int | None) -> RunConfig:
    """The config as the engines of one node see it: its address, how many share its cores, and whether learners do.

    number: of the node; None: of the only one.
    """
    if number is None:
        return config
    there = {"host": node.address, "count": len(engines_on(config, number))}
    lag = {"lag": 0} if own_nodes(config) else {}
    return config.model_copy(update={"engines": config.engines.model_copy(update=there),
                                     "rollout": config.rollout.model_copy(update=lag)})


def _given(paths: RunDir, index: int, url: str, tp: int) -> ProcessSpec:
    role = f"engine-{index}"
    return ProcessSpec(role=role, kind="engine", argv=(), log=_log(paths, role), url=url, tp=tp)


def _collector(paths: RunDir, machine: Machine) -> ProcessSpec:
    argv = (machine.python, "-m", "siri_megatron.rollout.service", str(paths.root))
    return ProcessSpec(role="collector", kind="service", argv=argv, env={"OMP_NUM_THREADS": "1"},
                       log=_log(paths, "collector"))


def _learners(module: str, learner: LearnerConfig, paths: RunDir, nodes: Sequence[Node], extra: Sequence[str],
              component: ComponentConfig, seats: Sequence[Seat], cores: Sequence[Sequence[int]]) -> list[ProcessSpec]:
    """One process a rank. seats: by rank; cores: by node, those that learners may use."""

    def one(rank: int) -> ProcessSpec:
        seat = seats[rank]
        node, here = nodes[seat.node], cores[seat.node]
        return ProcessSpec(
            role=f"learner-{rank}", kind="main", log=_log(paths, f"learner-{rank}"), node=seat.node,
            env=_learner_environment(learner, node) | _interface(node) | _devices(node, seat) | component.env,
            argv=(component.python or node.machine.python, "-m", module, str(paths.root),
                  "--rank", str(rank), "--world", str(learner.world_size), *extra),
            cores=(here[seat.local % len(here)],) if learner.pin_cores else ())

    return [one(rank) for rank in range(learner.world_size)]


def _learner_environment(learner: LearnerConfig, node: Node) -> dict[str, str]:
    env = {"OMP_NUM_THREADS": str(learner.threads), "TOKENIZERS_PARALLELISM": "false"}
    if node.address in ("127.0.0.1", "localhost"):  # gloo resolves the host name otherwise, which many machines cannot
        env["GLOO_SOCKET_IFNAME"] = "lo"
    if node.machine.device == "cuda":  # megatron-core asks for it wherever TP or CP overlaps communication
        env["CUDA_DEVICE_MAX_CONNECTIONS"] = "1"
    return env


def _interface(node: Node) -> dict[str, str]:
    return {"GLOO_SOCKET_IFNAME": node.interface} if node.interface else {}


def _devices(node: Node, seat: Seat) -> dict[str, str]:
    """The GPUs of a seat; without a seat's, the ranks of a machine share its GPUs out themselves."""
    return {"CUDA_VISIBLE_DEVICES": ",".join(node.machine.gpus[gpu] for gpu in seat.gpus)} if seat.gpus else {}


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
