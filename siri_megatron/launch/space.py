"""Room on the disk and in shared memory, before anything starts. Estimates from above."""

from __future__ import annotations

import math
import shutil
from pathlib import Path

from siri_megatron.config import RunConfig
from siri_megatron.errors import ConfigError, gib
from siri_megatron.files import existing
from siri_megatron.launch.model_files import ModelFiles
from siri_megatron.paths import RunDir

SHM = Path("/dev/shm")
PUSH_BUCKET_BYTES = 64 * 2**20
"""`weights.senders.BUCKET_BYTES` (that module imports torch)."""
ADAM_BYTES = 12  # a parameter in a checkpoint: fp32 master copy and two moments
SPARE_BYTES = 200 * 2**20  # logs, metrics, ledger of a small run


def disk_need(config: RunConfig, model: ModelFiles) -> int:
    """Bytes that the checkpoints and exports of the run will take (an estimate from above)."""
    phase_ends = config.budget.phase_ends
    checkpoint = model.parameters * ADAM_BYTES + model.bytes
    return (config.checkpoint.keep + 1 + phase_ends) * checkpoint + phase_ends * model.bytes + SPARE_BYTES


def disk_left(config: RunConfig, model: ModelFiles, *, resumed: bool) -> int:
    """The same, without what a resumed run finds there."""
    paths, need = RunDir(config.run_dir), disk_need(config, model)
    parts = (paths.checkpoints, paths.export) if resumed else ()
    there = sum(file.stat().st_size for part in parts for file in part.rglob("*") if file.is_file())
    return max(SPARE_BYTES, need - there)


def check_disk(root: Path, need: int) -> None:
    ancestor = existing(root)
    free = shutil.disk_usage(ancestor).free
    if free < need:
        raise ConfigError(f"{ancestor} has {gib(free)} free, the run may write {gib(need)}",
                          rule="checkpoints, exports and logs of the whole run fit the disk",
                          fix="free space, choose another runs_dir=..., or lower checkpoint.keep or budget.cycles")


def shm_need(model: ModelFiles) -> int:
    """Bytes that a push may have in shared memory: two buckets, and two more that engines keep until their last tensor
    is packed (vLLM packs a padded vocabulary when the update ends). A larger tensor is a bucket of its own."""
    largest = max(math.prod(tensor.shape) for tensor in model.tensors.values()) * (model.bytes // model.parameters)
    return min(model.bytes, 4 * max(PUSH_BUCKET_BYTES, largest))


def check_shm(need: int, shm: Path = SHM) -> None:
    """There is room for the buckets of a push."""
    free = shutil.disk_usage(shm).free if shm.is_dir() else 0
    if free < need:
        raise ConfigError(f"{shm} has {gib(free)} free, a push takes {gib(need)}",
                          rule="push.backend=shm hands the weights over in shared memory, a few buckets at a time",
                          fix="enlarge it (containers: --shm-size), or push.backend=gloo")
