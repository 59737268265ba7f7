"""Process groups of the learners: torch's default group over the control store, and megatron's parallel state."""

from __future__ import annotations

import os
from datetime import timedelta

import torch
import torch.distributed as dist

from siri_megatron.config import LearnerConfig
from siri_megatron.errors import ConfigError
from siri_megatron.learner.control import ControlPlane
from siri_megatron.learner.mcore import model_parallel_cuda_manual_seed, parallel_state


def start_groups(layout: LearnerConfig, control: ControlPlane | None, seed: int) -> None:
    """Join the other ranks and cut the world into tensor, context, data and pipeline parallel groups.

    Args:
        control: None for a single process without peers.

    Raises:
        ConfigError: the layout's size is not the number of ranks started.
    """
    rank, world = (control.rank, control.world) if control else (0, 1)
    if layout.world_size != world:
        raise ConfigError(f"learner.tp x pp x dp x cp = {layout.tp} x {layout.pp} x {layout.dp} x {layout.cp} = "
                          f"{layout.world_size}, but {world} learners were started", rule="one process a rank",
                          fix=f"start {layout.world_size}, or change the layout")
    _claim_cores(layout, rank)
    timeout = timedelta(seconds=layout.collective_timeout_s)
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", rank % torch.cuda.device_count())))
    dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo", rank=rank, world_size=world,
                            store=control.store() if control else dist.HashStore(), timeout=timeout)
    parallel_state.initialize_model_parallel(
        layout.tp, layout.pp, virtual_pipeline_model_parallel_size=layout.vpp if layout.vpp > 1 else None,
        context_parallel_size=layout.cp, distributed_timeout_minutes=layout.collective_timeout_s / 60)
    model_parallel_cuda_manual_seed(seed)


def stop_groups() -> None:
    """Leave every group, so that another layout may be started in this process."""
    parallel_state.destroy_model_parallel()
    dist.destroy_process_group()


def _claim_cores(layout: LearnerConfig, rank: int) -> None:
    """One thread pool of the configured size; with pin_cores, core `rank` of those that this process may use."""
    torch.set_num_threads(layout.threads)
    if layout.pin_cores:
        cores = sorted(os.sched_getaffinity(0))
        os.sched_setaffinity(0, {cores[rank % len(cores)]})
