"""Executors of nemo-run for a task: what the launch section of its config asks of Slurm.

Invariants:

- one_allocation: a run is one task a node in one allocation, never a group of nemo-run's: of a group the first
  component to end decides, and a failed learner can be reported as success.
- config_decides: what `siri launch slurm` takes from the launch section is taken from there. What an executor names
  (partition, time, ...) goes into the section first, and is checked with it.
- one_log: a job has one log, in the run directory, appended to over restarts (nemo-run starts one at each, and shows
  the first).
"""

from __future__ import annotations

import dataclasses
import socket
from pathlib import Path

import nemo_run
from nemo_run.core.execution.slurm import SlurmJobDetails

from siri_megatron import config as configs
from siri_megatron.config import RunConfig, signal_lead_s
from siri_megatron.errors import ConfigError
from siri_megatron.launch.placement import gpus_per_node
from siri_megatron.launch.render import NOTICE
from siri_megatron.nemo.task import Task, local_text, log_of, slurm_setup, slurm_text
from siri_megatron.nemo.tunnel import LocalTunnel, SSHTunnel

IN_CONFIG = {"account": "account", "partition": "partition", "qos": "qos", "time": "time_limit",
             "cpus_per_task": "cpus_per_node", "container_image": "container_image", "container_mounts": "mounts"}
"""Fields of an executor, and the keys of `launch.slurm` that mean the same."""
UNSET: dict[str, object] = {"account": None, "time": "", "container_mounts": []}
PREFIX = "siri."


@dataclasses.dataclass(kw_only=True)
class OneLog(SlurmJobDetails):
    """log: path of the job's log, with Slurm's %j."""

    log: str = ""

    @property
    def srun_stdout(self) -> Path:
        return Path(self.log)

    @property
    def ls_term(self) -> str:
        return self.log


def slurm_executor(tunnel: nemo_run.Tunnel | None = None, **fields: object) -> nemo_run.SlurmExecutor:
    """A Slurm executor that leaves to the config what `fields` does not say."""
    return nemo_run.SlurmExecutor(**{"account": None, "time": "", "tunnel": tunnel or LocalTunnel(job_dir=""),
                                     "packager": nemo_run.Packager(), "poll_estimated_start_time": False, **fields})


def with_executor(config: RunConfig, executor: nemo_run.Executor) -> RunConfig:
    """The config with what the executor says in its launch section.

    Raises:
        ConfigError: it says more nodes than the run has, something that the section refuses, or leads to a machine of
            which no Python is known.
    """
    if not isinstance(executor, nemo_run.SlurmExecutor):
        return config
    if executor.nodes not in (1, config.launch.nodes):
        raise ConfigError(f"the executor has nodes={executor.nodes}, the config launch.nodes={config.launch.nodes}",
                          rule="the launch section says how many nodes a run has, and what is on each",
                          fix=f"config.launch.nodes={executor.nodes}, and leave the executor's nodes out")
    if isinstance(executor.tunnel, SSHTunnel) and not config.launch.python:
        raise ConfigError(f"jobs are submitted over ssh to {executor.tunnel.host}, and launch.python is empty",
                          rule="the Python of this machine is none of the cluster's",
                          fix="config.launch.python=/path/on/the/cluster, and directory= of the repository there")
    said = {key: value for field, key in IN_CONFIG.items()
            if (value := getattr(executor, field)) not in (None, UNSET.get(field))}
    raw = config.model_dump(mode="json")
    raw["launch"]["slurm"] |= said
    return configs.validate(raw, "the executor and launch.slurm")


def for_task(executor: nemo_run.Executor, task: Task, stamps: Path) -> tuple[nemo_run.Script, nemo_run.Executor]:
    """What nemo-run starts for a task, and how."""
    if not isinstance(executor, nemo_run.SlurmExecutor):
        return nemo_run.Script(inline=local_text(task, _free_port(), stamps)), executor
    return nemo_run.Script(inline=slurm_text(task)), _slurm(executor, task)


def _slurm(executor: nemo_run.SlurmExecutor, task: Task) -> nemo_run.SlurmExecutor:
    config, slurm = task.job.config, task.job.config.launch.slurm
    directory, exclusive = str(task.job.place.directory), slurm.exclusive or None
    inside = "--container-workdir" if slurm.container_image else "--chdir"
    return dataclasses.replace(
        executor, nodes=task.nodes, ntasks_per_node=1, gpus_per_node=gpus_per_node(config) or None,
        time=slurm.time_limit, partition=slurm.partition or None, account=slurm.account or None, qos=slurm.qos or None,
        cpus_per_task=slurm.cpus_per_node, exclusive=exclusive, mem="0" if exclusive else executor.mem,
        container_image=slurm.container_image or None, container_mounts=list(slurm.mounts),
        signal=f"B:{NOTICE}@{signal_lead_s(config):.0f}" if task.trains else None, open_mode="append", retries=0,
        job_name_prefix=PREFIX, setup_lines=slurm_setup(task),
        srun_args=["--wait=0", "--kill-on-bad-exit=0", "--cpu-bind=none", "--open-mode=append", f"{inside}={directory}",
                   *(executor.srun_args or [])],
        job_details=OneLog(log=str(log_of(task))), dependency_type="afterok" if task.after == "success" else "afterany",
        additional_parameters={"chdir": directory, "requeue": True, "kill-on-invalid-dep": "yes",
                               **_directives(slurm.directives), **(executor.additional_parameters or {})})


def _directives(options: tuple[str, ...]) -> dict[str, object]:
    """`--name=value` as nemo-run wants it; an option without value is True."""
    parts = [option.removeprefix("--").partition("=") for option in options]
    return {name: value if equals else True for name, equals, value in parts}


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as free:
        return int(free.getsockname()[1])
