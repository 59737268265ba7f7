"""A run on several nodes: the same command on each, told which one it is. Node 0 leads, the others serve it.

    siri train CONFIG --resume --nodes N --head HOST:PORT --node I
"""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from siri_megatron import config as configs
from siri_megatron.config import RunConfig
from siri_megatron.errors import ConfigError, RunFailed, SiriError
from siri_megatron.files import on_disk, read_json, write_json
from siri_megatron.launch.display import Display
from siri_megatron.launch.gather import gather
from siri_megatron.launch.key import make_key
from siri_megatron.launch.lock import RunLock
from siri_megatron.launch.node_facts import NodeFacts
from siri_megatron.launch.placement import engine_seats
from siri_megatron.launch.progress import check_commits, last_commit, steps_done
from siri_megatron.launch.spec import ProcessPlan, Task, plan_run
from siri_megatron.launch.stop import clear_notice
from siri_megatron.launch.supervisor import Supervisor
from siri_megatron.launch.verdict import Verdict
from siri_megatron.paths import RunDir


@dataclass(frozen=True)
class Place:
    """Which node of the run this process is on, and where the head listens."""

    node: int
    head: tuple[str, int]


def place_of(args: Namespace, config: RunConfig) -> Place | None:
    """The place that the command line names; None for a run on one node.

    Raises:
        ConfigError: it does not suit the launch section.
    """
    nodes, wanted = args.nodes, config.launch.nodes
    if nodes is None and (wanted == 1 or args.dry_run or args.replay or args.rollout_only):
        return None
    if nodes is None:
        raise ConfigError(f"launch.nodes={wanted}, and this is one process without --nodes, --node and --head",
                          rule="a run on several nodes is started by a launcher, once on each node",
                          fix="siri launch slurm CONFIG, or siri launch local CONFIG for all of them on this machine")
    if nodes != wanted:
        raise ConfigError(f"--nodes {nodes}, but launch.nodes={wanted}", rule="every node of the run is started",
                          fix=f"start {wanted}, or set launch.nodes={nodes}")
    if args.fresh:
        raise ConfigError(f"--fresh with --nodes {nodes}", rule="every node must find the same run directory",
                          fix="--resume, under a new name=... or after removing the old directory")
    if args.head is None or not 0 <= args.node < nodes:
        raise ConfigError(f"--nodes {nodes} --node {args.node} --head {args.head}",
                          rule=f"--node is 0..{nodes - 1}, and --head is HOST:PORT of node 0", fix="give both")
    return Place(args.node, args.head)


def lead(config: RunConfig, task: Task, place: Place, display: Display, replay: Path | None = None,
         given: Sequence[int] = ()) -> tuple[Verdict, ProcessPlan]:
    """The head: gather the nodes, plan over them, supervise. given: tensor-parallel sizes of `engines.urls`.

    Raises:
        SiriError: the nodes cannot hold the run, or do not come.
    """
    paths = RunDir(config.run_dir)
    with on_disk(paths.root):
        paths.root.mkdir(parents=True, exist_ok=True)
    try:
        with RunLock(paths) as lock:
            check_commits(paths)
            clear_notice(paths)
            with on_disk(paths.root):
                key = make_key(paths.key, config.engines.key_file)
            nodes = gather(config, place.head, key, display)
            try:
                config = at_address(config, nodes.facts[0].address)
                plan = plan_nodes(config, task, nodes.facts, replay, given)
                with on_disk(paths.root):
                    configs.save(config, paths.config)
                return Supervisor(plan, display, lock, nodes).run(), plan
            finally:
                nodes.end()
    finally:
        display.close()


def at_address(config: RunConfig, address: str) -> RunConfig:
    """The config with the head's address as the one that collector, control store and weight sender listen on."""
    return config.model_copy(update={"engines": config.engines.model_copy(update={"host": address})})


def plan_nodes(config: RunConfig, task: Task, facts: Sequence[NodeFacts], replay: Path | None = None,
               given: Sequence[int] = ()) -> ProcessPlan:
    """The processes over these nodes (the head's facts first)."""
    nodes = [one.as_node(config) for one in facts]
    ports = [facts[seat.node].ports[seat.local] for seat in engine_seats(config)]
    return plan_run(config, task, nodes[0].machine, ports=ports, given=given, replay=replay, nodes=nodes)


@contextmanager
def refusal_recorded(paths: RunDir) -> Iterator[None]:
    """A run that is refused before its supervisor starts gets its verdict all the same, unless another one runs.

    One that has succeeded stays a success, whatever a later launch asked for: its verdict tells of the refusal as well.
    """
    try:
        yield
    except SiriError as error:
        if paths.root.is_dir():
            _record(paths, error)
        raise


def _record(paths: RunDir, error: SiriError) -> None:
    """Always a new file: agents that wait for this head take it for the head's end."""
    try:
        with RunLock(paths, wait_s=0.0):
            verdict = read_json(paths.result) or {}
            if verdict.get("status") == "success":
                verdict["refused"] = error.render()
            else:
                failed = Verdict("failed", error.render(), step=steps_done(paths), committed=last_commit(paths))
                verdict = failed.to_json() | {"exit_code": error.exit_code}
            write_json(paths.result, verdict)
    except (RunFailed, OSError):
        return  # another supervisor's directory: its verdict counts; or a full disk: the refusal is on the terminal
