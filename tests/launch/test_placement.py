"""Which process is where: the invariants of `launch/placement.py`."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from siri_megatron.config import RunConfig, load, validate
from siri_megatron.launch.placement import engine_seats, engines_on, gpus_per_node, learner_seats
from siri_megatron.launch.spec import PACKAGE_ROOT, Machine, Node, plan_run


def config(**sections: dict[str, Any]) -> RunConfig:
    raw: dict[str, Any] = {"name": "r", "model": {"path": "m"}, "optimizer": {"lr": 1e-4}, "push": {"backend": "gloo"},
                           "budget": {"l_min": 8, "l_max": 16, "cycle_steps": 4, "cycles": 2}}
    return validate(raw | sections, "test")


def placed(learner_nodes: int, each: int, engine_nodes: int, engines: int, gpus: int, own: bool) -> RunConfig:
    """own: nodes of their own for learners and engines; else both on the nodes of the learners."""
    engine_nodes = engine_nodes if own else learner_nodes
    return config(learner={"dp": learner_nodes * each}, engines={"count": engine_nodes * engines, "tp": gpus}, launch={
        "nodes": learner_nodes + engine_nodes if own else learner_nodes,
        "learner": {"nodes": learner_nodes, "gpus_per_node": each},
        "engines": {"nodes": engine_nodes, "gpus_per_node": engines * gpus}})


few = st.integers(1, 3)


@given(few, few, few, few, few, st.booleans())
def test_in_order_and_head_has_rank0(learner_nodes: int, each: int, engine_nodes: int, engines: int, gpus: int,
                                     own: bool) -> None:
    run = placed(learner_nodes, each, engine_nodes, engines, gpus, own)
    seats = learner_seats(run)
    assert [seat.node for seat in seats] == [rank // each for rank in range(learner_nodes * each)]
    assert (seats[0].node, seats[0].local) == (0, 0)
    assert sorted(index for node in range(run.launch.nodes) for index in engines_on(run, node)) == \
        list(range(run.engines.count))


@given(few, few, few, few, few, st.booleans())
def test_own_gpus(learner_nodes: int, each: int, engine_nodes: int, engines: int, gpus: int, own: bool) -> None:
    run = placed(learner_nodes, each, engine_nodes, engines, gpus, own)
    taken = [(seat.node, gpu) for seat in [*learner_seats(run), *engine_seats(run)] for gpu in seat.gpus]
    assert len(taken) == len(set(taken)) == learner_nodes * each + run.engines.count * gpus
    assert max(gpu for _, gpu in taken) + 1 == gpus_per_node(run)


def test_own_nodes() -> None:
    run = placed(2, 2, 2, 1, 1, own=True)
    assert [seat.node for seat in engine_seats(run)] == [2, 3]


def test_who_takes_turns_has_the_same_gpus() -> None:
    run = config(learner={"dp": 4}, engines={"count": 2, "tp": 2}, launch={
        "placement": "turns", "learner": {"gpus_per_node": 4}, "engines": {"gpus_per_node": 4}})
    assert [seat.gpus for seat in learner_seats(run)] == [(0,), (1,), (2,), (3,)]
    assert [seat.gpus for seat in engine_seats(run)] == [(0, 1), (2, 3)]


def test_the_papers_7b_run_is_placed_as_its_config_says() -> None:
    run = load(PACKAGE_ROOT / "configs" / "r1-distill-7b.yaml")
    machine = Machine(cores=(0,), device="cuda", python="python", gpus=tuple("ABCDEFGH"))
    nodes = [Node(machine, f"10.0.0.{i}", "ib0") for i in (1, 2)]
    plan = plan_run(run, "train", machine, ports=range(8000, 8008), nodes=nodes)
    engine, learner = plan.of("engine")[7], plan.of("main")[3]
    assert (engine.node, engine.url, engine.env["CUDA_VISIBLE_DEVICES"]) == (1, "http://10.0.0.2:8007", "H")
    assert engine.argv[engine.argv.index("--host") + 1] == "10.0.0.2"
    assert (learner.node, learner.env["CUDA_VISIBLE_DEVICES"], learner.env["GLOO_SOCKET_IFNAME"]) == (0, "D", "ib0")
