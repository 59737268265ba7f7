"""Where the processes of a run are started, on how many nodes, and how a cluster is asked for them.

`launch.learner` and `launch.engines` say what each component takes; the rules that tie them to the layout, the fleet,
the push and the checkpoints stand in `check_launch`, which a whole RunConfig is put through.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from siri_megatron.config.base import Section

if TYPE_CHECKING:
    from siri_megatron.config.run import RunConfig

END_S = 20.0
"""Of the notice that a scheduler gives: kept for ending the processes once the learners have committed."""
SAVE_SLACK_S = 120.0
Name = Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")]
Scalar = bool | int | float | str


class ComponentConfig(Section):
    nodes: int = Field(1, ge=1)
    """Nodes that hold processes of this component."""
    tasks_per_node: int | None = Field(None, ge=1)
    """Processes of it on each of these nodes; none: as many as divide evenly."""
    gpus_per_node: int = Field(0, ge=0)
    """GPUs for it on each of these nodes; 0: on CPU, or on one node whose GPUs the processes find themselves."""
    python: str = ""
    """Python that these processes run under (an environment of their own); empty: the supervisor's."""
    env: dict[Name, str] = Field({})
    """Variables of these processes alone."""


class SlurmConfig(Section):
    time_limit: str = Field("1-00:00:00", pattern=r"^(\d+-)?\d{1,2}:\d\d:\d\d$")
    """Time limit of a job: [days-]hours:minutes:seconds."""
    signal_lead_s: float | None = Field(None, gt=0)
    """Notice before the time limit, in which learners commit and the job requeues itself; none: 140 s more than a save
    may take."""
    retries: int = Field(8, ge=0)
    """Requeues of one job, after its time limit or a lost node."""
    partition: str = ""
    """Partition; empty: the site's default."""
    account: str = ""
    """Account that the job is charged to."""
    qos: str = ""
    """Quality of service."""
    exclusive: bool = True
    """Whole nodes."""
    cpus_per_node: int | None = Field(None, ge=1)
    """CPUs of each node, where nodes are not given whole."""
    directives: tuple[str, ...] = ()
    """Further options of sbatch, e.g. --reservation=maintenance."""
    setup: tuple[str, ...] = ()
    """Shell lines before anything starts, e.g. `module load cuda`."""
    container_image: str = ""
    """Image that everything runs in (pyxis and enroot)."""
    mounts: tuple[str, ...] = ()
    """Mounts of the container, as pyxis takes them: FROM:TO[:ro]."""
    log: str = "launch/%j.log"
    """Log of the job below the run directory, in Slurm's patterns; an array adds the number of its element."""
    chain: int = Field(1, ge=1)
    """Jobs of this name in a row (dependency=singleton): each goes on where the one before ended."""
    sweep: dict[str, tuple[Scalar, ...]] = Field({})
    """Keys and their values, e.g. {seed: [1, 2, 3]}: an array with one run for each combination."""

    @field_validator("time_limit", mode="before")
    @classmethod
    def _yaml_counts_in_sixties(cls, value: Any) -> Any:
        """YAML 1.1 reads 4:00:00 as the number 14400."""
        if not isinstance(value, int) or isinstance(value, bool):
            return value
        return f"{value // 3600 // 24}-{value // 3600 % 24:02}:{value // 60 % 60:02}:{value % 60:02}"

    @property
    def time_limit_s(self) -> float:
        """Seconds of the time limit."""
        days, _, clock = self.time_limit.rpartition("-")
        hours, minutes, seconds = map(int, clock.split(":"))
        return ((int(days or 0) * 24 + hours) * 60 + minutes) * 60 + seconds

    @model_validator(mode="after")
    def _container_keys_are_read(self) -> SlurmConfig:
        if self.mounts and not self.container_image:
            raise ValueError(f"mounts={list(self.mounts)} without container_image: only a container has mounts; "
                             "name its image, or leave mounts out")
        return self

    @model_validator(mode="after")
    def _runs_of_a_sweep_are_apart(self) -> SlurmConfig:
        """Each has a directory of its own, and what the job script is made of is the same for all."""
        for key, values in self.sweep.items():
            if key in ("name", "runs_dir") or key.startswith("launch."):
                raise ValueError(f"sweep has {key}, but all runs of a job have one script, and are named by their "
                                 f"values: leave {key} out")
            if not values:
                raise ValueError(f"sweep has {key} without values, which makes no run at all: give some, or leave "
                                 f"{key} out")
        names = [chosen[0] for chosen in variants(self, "")] if self.sweep else []
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f"sweep makes two runs called ...{twice[0].removeprefix('name=')}: one directory holds "
                             "one run; give each value once, and values that differ in letters or digits")
        return self

    @model_validator(mode="after")
    def _directives_are_options(self) -> SlurmConfig:
        if wrong := [text for text in self.directives if not re.match(r"--[a-z]", text) or "\n" in text]:
            raise ValueError(f"directives has {wrong[0]!r}: each is one option of sbatch, e.g. --reservation=NAME")
        return self


class LaunchConfig(Section):
    stop_grace_s: float = Field(10.0, gt=0)
    """Seconds after Ctrl-C or SIGTERM in which learners may finish their step and commit; then everything is killed."""
    nodes: int = Field(1, ge=1)
    """Nodes of the run."""
    placement: Literal["side_by_side", "turns"] = "side_by_side"
    """Learners and engines have nodes of their own (or GPUs of their own on the same nodes), or take turns on the same
    GPUs of the same nodes."""
    learner: ComponentConfig = ComponentConfig()
    """What the learners take: nodes, processes, GPUs, environment."""
    engines: ComponentConfig = ComponentConfig()
    """What the engines take: the same keys as `launch.learner`."""
    python: str = ""
    """Python of the supervisor, and of what names none of its own; empty: the one that `siri launch` runs under."""
    interface: str = ""
    """Private network interface (e.g. ib0) that nodes talk over; empty: the one over which a node reaches the head."""
    join_timeout_s: float = Field(180.0, gt=0)
    """Longest wait until every node has joined the head."""
    node_timeout_s: float = Field(30.0, gt=0)
    """Silence of a node after which it counts as lost."""
    hang_timeout_s: float | None = Field(None, gt=0)
    """Seconds without a step or an event after which a run that has begun to train is ended as hanging; none: never."""
    env: dict[Name, str] = Field({})
    """Variables of every process of the run, e.g. NCCL_IB_HCA."""
    slurm: SlurmConfig = SlurmConfig()


def signal_lead_s(run: RunConfig) -> float:
    """Seconds between a scheduler's notice and the end of the job."""
    return run.launch.slurm.signal_lead_s or run.checkpoint.timeout_s + END_S + SAVE_SLACK_S


def check_launch(run: RunConfig) -> None:
    """The launch section agrees with itself, the layout, the fleet, the push and the checkpoints.

    Raises:
        ValueError: it does not; with both numbers and the fix.
    """
    _check_container(run.launch)
    _check_tasks("learner", run.launch.learner, run.learner.world_size, "learner.tp x pp x dp x cp")
    if run.engines.urls:
        _check_learners_alone(run)
    else:
        _check_nodes(run.launch)
        _check_tasks("engines", run.launch.engines, run.engines.count, "engines.count")
        _check_engine_gpus(run)
    _check_learner_gpus(run)
    _check_push(run)
    _check_times(run)


def _check_nodes(launch: LaunchConfig) -> None:
    nodes, learner, engines = launch.nodes, launch.learner.nodes, launch.engines.nodes
    together = learner == engines == nodes
    if launch.placement == "turns" and not together:
        raise ValueError(f"launch.placement=turns with launch.learner.nodes={learner} and launch.engines.nodes="
                         f"{engines} of launch.nodes={nodes}: who takes turns has the same nodes; make the three equal")
    if not together and learner + engines != nodes:
        raise ValueError(f"launch.nodes={nodes}, but launch.learner.nodes={learner} and launch.engines.nodes={engines}"
                         f": either all three are equal (the same nodes) or {learner} + {engines} = nodes (their own); "
                         f"set launch.nodes={learner + engines}")


def _check_learners_alone(run: RunConfig) -> None:
    """Engines that others start take no node of this run."""
    launch, nodes = run.launch, run.launch.nodes
    if launch.engines != ComponentConfig() or launch.placement != "side_by_side":
        raise ValueError(f"launch.engines={launch.engines.model_dump(exclude_defaults=True)}, launch.placement="
                         f"{launch.placement} with engines.urls: others start these engines, and the launch section is "
                         "not read for them; leave both out")
    if launch.learner.nodes != nodes:
        raise ValueError(f"launch.learner.nodes={launch.learner.nodes} of launch.nodes={nodes} with engines.urls: "
                         f"engines that others start take no node of the run; set launch.learner.nodes={nodes}")


def _check_container(launch: LaunchConfig) -> None:
    if launch.slurm.container_image and not launch.python:
        raise ValueError(f"launch.slurm.container_image={launch.slurm.container_image} without launch.python: the "
                         "Python of this machine is none of the image's; give the path inside the image, e.g. python3")


def _check_tasks(name: str, component: ComponentConfig, wanted: int, rule: str) -> None:
    tasks = component.tasks_per_node
    if tasks is None and wanted % component.nodes:
        raise ValueError(f"{rule} = {wanted} does not divide over launch.{name}.nodes={component.nodes}: choose a "
                         f"number of nodes that divides {wanted}")
    if tasks is not None and component.nodes * tasks != wanted:
        raise ValueError(f"launch.{name}: nodes x tasks_per_node = {component.nodes} x {tasks} = "
                         f"{component.nodes * tasks}, but {rule} = {wanted}: leave tasks_per_node out, or make them "
                         "equal")


def _check_learner_gpus(run: RunConfig) -> None:
    learner, ranks = run.launch.learner, run.learner.world_size // run.launch.learner.nodes
    if learner.gpus_per_node not in (0, ranks):
        raise ValueError(f"launch.learner.gpus_per_node={learner.gpus_per_node} with {ranks} learners a node: each "
                         f"learner has one GPU; set {ranks}")


def _check_engine_gpus(run: RunConfig) -> None:
    learner, engines = run.launch.learner, run.launch.engines
    if (learner.gpus_per_node > 0) != (engines.gpus_per_node > 0):
        raise ValueError(f"launch.learner.gpus_per_node={learner.gpus_per_node}, launch.engines.gpus_per_node="
                         f"{engines.gpus_per_node}: both components run on GPUs or none does; give both, or neither")
    servers = run.engines.count // engines.nodes
    if engines.gpus_per_node not in (0, servers * run.engines.tp):
        raise ValueError(f"launch.engines.gpus_per_node={engines.gpus_per_node} with {servers} engines a node of "
                         f"engines.tp={run.engines.tp}: an engine has tp GPUs; set {servers * run.engines.tp}")
    if run.launch.placement == "turns" and learner.gpus_per_node != engines.gpus_per_node:
        raise ValueError(f"launch.placement=turns with gpus_per_node={learner.gpus_per_node} for learners and "
                         f"{engines.gpus_per_node} for engines: who takes turns has the same GPUs; make them equal")


def _check_push(run: RunConfig) -> None:
    if run.launch.nodes > 1 and run.push.backend == "shm":
        raise ValueError(f"push.backend=shm with launch.nodes={run.launch.nodes}: shared memory reaches the engines of "
                         "one host; set push.backend=gloo (CPU) or nccl (GPU)")
    if run.launch.placement == "turns" and run.push.backend == "nccl":
        raise ValueError("push.backend=nccl with launch.placement=turns: NCCL makes no group with two processes on one "
                         "GPU; set push.backend=shm (one host) or gloo")


def _check_times(run: RunConfig) -> None:
    slurm, lead = run.launch.slurm, signal_lead_s(run)
    if lead <= (need := run.checkpoint.timeout_s + END_S):
        raise ValueError(f"launch.slurm.signal_lead_s={lead:g}, but a save may take checkpoint.timeout_s="
                         f"{run.checkpoint.timeout_s:g} s and the end {END_S:g} s: the notice is longer than both; "
                         f"set more than {need:g}, or lower checkpoint.timeout_s")
    if slurm.time_limit_s <= lead:
        raise ValueError(f"launch.slurm.time_limit={slurm.time_limit} ({slurm.time_limit_s:g} s) is not above the "
                         f"notice of {lead:g} s: such a job would stop before it works; raise time_limit, or lower "
                         "launch.slurm.signal_lead_s and checkpoint.timeout_s")
    longest = max(run.collect_timeout_s(run.budget.l_max), run.evaluation_wait_s + run.evaluation_timeout_s)
    if run.launch.hang_timeout_s is not None and run.launch.hang_timeout_s <= longest:
        raise ValueError(f"launch.hang_timeout_s={run.launch.hang_timeout_s:g}, but one collection or evaluation may "
                         f"take {longest:g} s: a longer one is no hang; raise it above")


def variants(slurm: SlurmConfig, name: str) -> list[tuple[str, ...]]:
    """The overrides of every run of a sweep, e.g. ("name=tiny-seed1", "seed=1"); one empty tuple without a sweep.

    The first key varies slowest. Names are made of the keys' last parts and the values.
    """
    found: list[tuple[tuple[str, Scalar], ...]] = [()]
    for key, values in slurm.sweep.items():
        found = [(*chosen, (key, value)) for chosen in found for value in values]
    if found == [()]:
        return [()]
    return [(f"name={name}-{'-'.join(_label(key, value) for key, value in chosen)}",
             *(f"{key}={_text(value)}" for key, value in chosen)) for chosen in found]


def _label(key: str, value: Scalar) -> str:
    return re.sub(r"[^\w.+]", "_", f"{key.rpartition('.')[2]}{_text(value)}")


def _text(value: Scalar) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)

