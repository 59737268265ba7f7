"""The GPUs of this machine: which there are, and whether they are enough."""

from __future__ import annotations

import os
from pathlib import Path

from siri_megatron.config import RunConfig
from siri_megatron.errors import ConfigError
from siri_megatron.launch.spec import Machine, Task


def visible_gpus(devices: Path = Path("/dev")) -> tuple[str, ...]:
    """The NVIDIA devices that this process may use, as CUDA_VISIBLE_DEVICES names them."""
    found = sorted(int(path.name.removeprefix("nvidia")) for path in devices.glob("nvidia[0-9]*"))
    given = os.environ.get("CUDA_VISIBLE_DEVICES")
    return tuple(name.strip() for name in given.split(",") if name.strip()) if found and given is not None else \
        tuple(map(str, found))


def check_gpus(config: RunConfig, task: Task, machine: Machine) -> None:
    """Every learner, and every worker of an engine, has a GPU of its own."""
    learners = config.learner.world_size if task in ("train", "replay") else 0
    elsewhere = task == "replay" or bool(config.engines.urls)
    workers = 0 if elsewhere else config.engines.count * config.engines.tp
    if config.launch.nodes > 1 and learners:
        return  # each node is looked at by itself (`node_facts`)
    need = max(learners, workers) if config.launch.placement == "turns" else learners + workers
    if machine.device == "cuda" and need > len(machine.gpus):
        raise ConfigError(f"{learners} learners and {config.engines.count} engines x engines.tp={config.engines.tp} "
                          f"take {need} GPUs, this machine has {len(machine.gpus)}",
                          rule="a learner, and a worker of an engine, has a GPU of its own",
                          fix="lower engines.count, engines.tp or learner.dp")
