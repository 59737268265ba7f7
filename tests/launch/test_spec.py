"""The process plan of every task: the invariants of `launch/spec.py`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from siri_megatron.config import RunConfig, validate
from siri_megatron.launch.spec import LEFTOVERS, PACKAGE_ROOT, Machine, Task, child_environment, plan_run, plan_sft
from siri_megatron.sft_config import SftConfig, load_sft

MACHINE = Machine(cores=(4, 6), python="python")
TASKS: tuple[Task, ...] = ("train", "replay", "rollout-only", "eval")


def config(**sections: dict[str, Any]) -> RunConfig:
    raw: dict[str, Any] = {"name": "r", "model": {"path": "m"}, "optimizer": {"lr": 1e-4},
                           "budget": {"l_min": 8, "l_max": 16, "cycle_steps": 4, "cycles": 2}}
    return validate(raw | sections, "test")


def sft() -> SftConfig:
    return load_sft(PACKAGE_ROOT / "configs" / "tiny-warmstart.yaml", ["learner.tp=2"])


@given(tp=st.integers(1, 4), pp=st.integers(1, 3), dp=st.integers(1, 3), engines=st.integers(1, 4),
       task=st.sampled_from(TASKS))
def test_mains_decide_and_order(tp: int, pp: int, dp: int, engines: int, task: Task) -> None:
    sections = {"learner": {"tp": tp, "pp": pp, "dp": dp}, "engines": {"count": engines}}
    plan = plan_run(config(**sections), task, MACHINE, ports=range(9000, 9000 + engines))
    assert plan.of("main")
    kinds = [process.kind for process in plan.processes]
    assert kinds == sorted(kinds, key=["engine", "service", "main"].index)
    assert len({process.role for process in plan.processes}) == len(plan.processes)
    assert len({process.log for process in plan.processes}) == len(plan.processes)


@given(tp=st.integers(1, 4), pp=st.integers(1, 3), dp=st.integers(1, 3))
def test_whole_world(tp: int, pp: int, dp: int) -> None:
    plan = plan_run(config(learner={"tp": tp, "pp": pp, "dp": dp}), "train", MACHINE, ports=(9000, 9001))
    argvs = [process.argv for process in plan.of("main")]
    assert [argv[argv.index("--rank") + 1] for argv in argvs] == [str(rank) for rank in range(tp * pp * dp)]
    assert {argv[argv.index("--world") + 1] for argv in argvs} == {str(tp * pp * dp)}


def roles(task: Task) -> list[str]:
    plan = plan_run(config(learner={"tp": 2}), task, MACHINE, ports=() if task == "replay" else (9000, 9001))
    return [process.role for process in plan.processes]


def test_training_has_everything() -> None:
    assert roles("train") == ["engine-0", "engine-1", "collector", "learner-0", "learner-1"]


def test_replay_needs_no_engines() -> None:
    assert roles("replay") == ["learner-0", "learner-1"]
    plan = plan_run(config(), "replay", MACHINE, replay=Path("runs/old"))
    assert plan.processes[0].argv[-2:] == ("--replay", "runs/old")


@pytest.mark.parametrize("task", ["rollout-only", "eval"])
def test_rollout_needs_no_learners(task: Task) -> None:
    assert roles(task) == ["engine-0", "engine-1", "collector", "driver"]


def test_warm_start_is_learners_only() -> None:
    plan = plan_sft(sft(), MACHINE)
    assert [process.role for process in plan.processes] == ["learner-0", "learner-1"]
    assert plan.processes[0].argv[1:3] == ("-m", "siri_megatron.learner.sft_main")
    assert plan.steps == sft().steps


def test_steps_are_counted_where_there_are_steps() -> None:
    assert [plan_run(config(), task, MACHINE).steps for task in TASKS] == [8, 8, 8, 0]


def test_engine_urls_follow_the_ports() -> None:
    plan = plan_run(config(engines={"host": "10.0.0.7"}), "train", MACHINE, ports=(9000, 9005))
    assert [engine.url for engine in plan.of("engine")] == ["http://10.0.0.7:9000", "http://10.0.0.7:9005"]


@given(tp=st.integers(1, 4), dp=st.integers(1, 3), engines=st.integers(1, 4), size=st.integers(1, 3),
       task=st.sampled_from(TASKS))
def test_apart_on_gpus(tp: int, dp: int, engines: int, size: int, task: Task) -> None:
    """No GPU has two of them; learners see all devices and take the one of their rank."""
    learners = tp * dp if task in ("train", "replay") else 0
    machine = Machine(cores=(0,), device="cuda", gpus=tuple(f"g{i}" for i in range(learners + engines * size)))
    sections = {"learner": {"tp": tp, "dp": dp}, "engines": {"count": engines, "tp": size}}
    plan = plan_run(config(**sections), task, machine, ports=range(9000, 9000 + engines))
    given = [process.env["CUDA_VISIBLE_DEVICES"].split(",") for process in plan.of("engine")]
    assert all(len(gpus) == size for gpus in given)
    assert [gpu for gpus in given for gpu in gpus] == list(machine.gpus[learners:] if given else [])
    assert {process.tp for process in plan.of("engine")} <= {size}


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("machine", [MACHINE, Machine((4, 6), "cuda", "python", tuple("01234567"))],
                         ids=["cpu", "cuda"])
def test_one_machine_plays_what_is_for_several_nodes(machine: Machine, task: Task) -> None:
    """`siri eval`, a replay, a dry run of a config whose learners and engines have nodes of their own."""
    launch = {"nodes": 2, "learner": {"gpus_per_node": 4}, "engines": {"gpus_per_node": 4}}
    run = config(learner={"dp": 4}, engines={"count": 4}, push={"backend": "nccl"}, launch=launch)
    plan = plan_run(run, task, machine, ports=() if task == "replay" else range(9000, 9004))
    assert {process.node for process in plan.processes} == {0}
    devices = [process.env.get("CUDA_VISIBLE_DEVICES", "") for process in plan.of("engine")]
    first = 4 if task == "train" else 0
    assert devices == ([""] * 4 if machine == MACHINE else [str(first + engine) for engine in range(4)])[:len(devices)]


def test_an_evaluation_takes_the_first_gpus_whatever_training_has() -> None:
    """The config of a run on eight GPUs, evaluated on a machine with four."""
    launch = {"learner": {"gpus_per_node": 4}, "engines": {"gpus_per_node": 4}}
    run = config(learner={"dp": 4}, engines={"count": 4}, launch=launch)
    plan = plan_run(run, "eval", Machine((0,), "cuda", "python", tuple("abcd")), ports=range(9000, 9004))
    assert [process.env["CUDA_VISIBLE_DEVICES"] for process in plan.of("engine")] == list("abcd")
    trained = plan_run(run, "train", Machine((0,), "cuda", "python", tuple("abcdefgh")), ports=range(9000, 9004))
    assert [process.env["CUDA_VISIBLE_DEVICES"] for process in trained.of("engine")] == list("efgh")


def test_bound() -> None:
    pinned = plan_run(config(learner={"tp": 3, "pin_cores": True}), "train", MACHINE)
    free = plan_run(config(learner={"tp": 3}), "train", MACHINE)
    assert [process.cores for process in pinned.of("main")] == [(4,), (6,), (4,)]
    assert [process.cores for process in free.of("main")] == [(), (), ()]


def test_loopback_runs_do_not_resolve_the_host_name() -> None:
    local = plan_run(config(), "train", MACHINE).of("main")[0]
    wide = plan_run(config(engines={"host": "10.0.0.7"}), "train", MACHINE).of("main")[0]
    assert local.env["GLOO_SOCKET_IFNAME"] == "lo"
    assert "GLOO_SOCKET_IFNAME" not in wide.env


def test_variables_of_the_launch_section_reach_every_process() -> None:
    """Also without `siri launch`, which exports them for the supervisor."""
    launch = {"env": {"NCCL_DEBUG": "INFO", "OMP_NUM_THREADS": "9"}, "learner": {"env": {"NCCL_DEBUG": "WARN"}}}
    for task in TASKS:
        plan = plan_run(config(launch=launch), task, MACHINE, ports=() if task == "replay" else (9000, 9001))
        for process in plan.processes:
            assert process.env["NCCL_DEBUG"] == ("WARN" if process.role.startswith("learner") else "INFO")
            assert process.env["OMP_NUM_THREADS"] == "1" or process.kind == "engine"


def test_clean_environment() -> None:
    base = dict.fromkeys(LEFTOVERS, "x") | {"TORCHELASTIC_RUN_ID": "x", "VLLM_CPU_KVCACHE_SPACE": "9", "HOME": "/h",
                                            "PYTHONPATH": "/mine", "OMP_NUM_THREADS": "64"}
    clean = child_environment(base, {"OMP_NUM_THREADS": "1"})
    assert clean == {"HOME": "/h", "PYTHONPATH": f"{PACKAGE_ROOT}:/mine", "OMP_NUM_THREADS": "1",
                     "PYTHONUNBUFFERED": "1"}


def test_json_is_complete() -> None:
    process = plan_run(config(), "train", MACHINE, ports=(9000, 9001)).processes[0]
    record = process.to_json()
    assert tuple(record["argv"]) == process.argv
    assert record["url"] == process.url
