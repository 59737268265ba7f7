"""The memory of this machine, and whether a run fits it.

On CPU everything shares the machine's memory, or less where a cgroup says so (containers, Slurm). On a GPU each learner
rank has one of its own.
"""

from __future__ import annotations

import os
import subprocess
from pathlib import Path, PurePosixPath

from siri_megatron.config import RunConfig
from siri_megatron.errors import ConfigError, gib
from siri_megatron.estimate.activations import BYTES
from siri_megatron.estimate.host import Host, learner_stages
from siri_megatron.launch.model_files import ModelFiles
from siri_megatron.launch.spec import Machine, Task
from siri_megatron.learner.architecture import Architecture

LIMITS = {"": ("sys/fs/cgroup", "memory.max"), "memory": ("sys/fs/cgroup/memory", "memory.limit_in_bytes")}
"""Controller in /proc/self/cgroup -> where its groups lie, and the file that holds the limit (versions 2 and 1)."""
SMI_TIMEOUT_S = 10.0
RULE = "learners, engines and collector fit the memory together"


def check_memory(config: RunConfig, model: ModelFiles, task: Task, machine: Machine) -> None:
    """The run fits: the learner ranks their GPUs, or everything this machine's memory.

    Raises:
        ConfigError: it does not; with both numbers, what takes most, and the nearest change that fits.
    """
    arch = Architecture.of(model.config) if task in ("train", "replay") else None
    if machine.device == "cuda":
        if arch and (memory := gpu_bytes()):
            check_gpu(config, arch, memory)
        return
    if config.launch.nodes > 1:
        return  # this one holds a part of it only
    here = task != "replay" and not config.engines.urls
    host = Host(arch, model.parameters * BYTES[config.model.dtype], engines=here)
    limit, need = memory_limit(), host.need(config)
    if need > limit:
        most = "; ".join(f"{part.name}: {gib(part.bytes)}" for part in host.parts(config)[:2])
        raise ConfigError(f"the run takes {gib(need)}, the machine has {gib(limit)}. Most goes to {most}", rule=RULE,
                          fix=host.nearest(config, limit))


def check_gpu(config: RunConfig, arch: Architecture, memory: int) -> None:
    """A learner rank of the fullest stage fits its GPU."""
    stages = learner_stages(config, arch, spec="local" if config.model.spec == "local" else "te")
    stage = max(range(len(stages)), key=lambda number: stages[number].on_device)
    if (need := stages[stage].on_device) > memory:
        raise ConfigError(f"a learner of stage {stage} takes {gib(need)}, the GPU has {gib(memory)}",
                          rule="the fullest learner rank fits its GPU",
                          fix="`siri plan` shows what takes it; more learner.tp or learner.pp, learner.recompute=full, "
                              "or a smaller batching.tokens_per_micro_batch")


def memory_limit(root: Path = Path("/")) -> int:
    """Bytes that this process and its children may use: the machine's, or the tightest limit of its cgroups."""
    return min([_physical(root), *_group_limits(root)])


def _physical(root: Path) -> int:
    for line in (root / "proc/meminfo").read_text().splitlines():
        if line.startswith("MemTotal:"):
            return int(line.split()[1]) * 1024
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def _group_limits(root: Path) -> list[int]:
    """Of this process's cgroup and of those above it. Inside a container they stand at the mount's root."""
    table = root / "proc/self/cgroup"
    found = []
    for line in table.read_text().splitlines() if table.exists() else ():
        _, controllers, path = line.split(":", 2)
        for controller in controllers.split(","):
            mount, name = LIMITS.get(controller, (None, ""))
            if mount is not None:
                places = [PurePosixPath(path), *PurePosixPath(path).parents]
                found += [_limit(root / mount / str(place).lstrip("/") / name) for place in places]
    return [limit for limit in found if limit is not None]


def _limit(path: Path) -> int | None:
    """None: no file, or no limit ("max")."""
    try:
        text = path.read_text().strip()
    except OSError:  # the path is that of the host, seen from inside a container
        return None
    return int(text) if text.isdigit() else None


def gpu_bytes() -> int | None:
    """Memory of the smallest GPU, as the driver's own tool says it; None: there is no tool, or it does not answer."""
    command = ["nvidia-smi", "--query-gpu=memory.total", "--format=csv,noheader,nounits"]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=SMI_TIMEOUT_S, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return None
    sizes = [int(line) for line in answer.split() if line.isdigit()]
    return min(sizes) * 2**20 if sizes else None
