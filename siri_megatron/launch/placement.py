"""Which process has its place on which node, with which GPUs. Pure; the config was checked (`config.launch`).

Invariants:

- in_order: learner ranks, and engines, fill the nodes in the order of their numbers, evenly.
- head_has_rank0: learner rank 0 is on node 0, beside the supervisor and the collector.
- own_nodes: side by side on nodes of their own, engines come after the learners' nodes.
- given_have_no_seat: engines that somebody else started (`engines.urls`) take no node.
- own_gpus: on shared nodes side by side no GPU has two owners; taking turns, both components have the same ones.
"""

from __future__ import annotations

from dataclasses import dataclass

from siri_megatron.config import ComponentConfig, RunConfig


@dataclass(frozen=True)
class Seat:
    """Place of one process: node, GPUs there, and its number among the processes of its component there."""

    node: int
    local: int
    gpus: tuple[int, ...] = ()


def learner_seats(config: RunConfig) -> list[Seat]:
    """By rank."""
    return _seats(config.launch.learner, config.learner.world_size, first_node=0, first_gpu=0)


def engine_seats(config: RunConfig) -> list[Seat]:
    """By index."""
    if config.engines.urls:
        return []
    launch = config.launch
    apart = own_nodes(config)
    beside = not apart and launch.placement == "side_by_side"
    return _seats(launch.engines, config.engines.count, first_node=launch.learner.nodes if apart else 0,
                  first_gpu=launch.learner.gpus_per_node if beside else 0)


def own_nodes(config: RunConfig) -> bool:
    """Learners and engines are on nodes of their own."""
    return bool(config.engines.urls) or config.launch.learner.nodes + config.launch.engines.nodes == config.launch.nodes


def gpus_per_node(config: RunConfig) -> int:
    """GPUs that every node of the run must have; 0 on CPU."""
    seats = [*learner_seats(config), *engine_seats(config)]
    return max((gpu + 1 for seat in seats for gpu in seat.gpus), default=0)


def engines_on(config: RunConfig, node: int) -> list[int]:
    """Indices of the engines of a node."""
    return [index for index, seat in enumerate(engine_seats(config)) if seat.node == node]


def _seats(component: ComponentConfig, count: int, *, first_node: int, first_gpu: int) -> list[Seat]:
    each = count // component.nodes
    own = component.gpus_per_node // each
    return [Seat(first_node + number // each, number % each,
                 tuple(first_gpu + number % each * own + gpu for gpu in range(own))) for number in range(count)]
