"""What a push says to vLLM, for fleets of mixed tensor-parallel sizes, and that what it sends arrives bit for bit.

Nothing here is played on the sender's side but one thing: where NCCL would make the group, gloo does. The routes, the
way from a route to the workers, and the receivers are the real ones (played_engines.py); vLLM is the release of the GPU
wheels.
"""

from __future__ import annotations

import ast
import dataclasses
import inspect
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from engine_fleet import alone, fleet_config, with_engines
from played_engines import PlayedEngine, played_fleet, receiver
from vllm.distributed.weight_transfer import nccl_common
from vllm.utils.nccl import unpinned_nccl_env

from siri_megatron.config import RunConfig
from siri_megatron.errors import EngineError
from siri_megatron.paths import RunDir
from siri_megatron.rollout.fleet import Engine, accusations
from siri_megatron.weights import engine_extension, senders, transfer_group
from siri_megatron.weights.engine_extension import TransferInit, TransferUpdate, WeightReceiver, worker_number
from siri_megatron.weights.feed import ALIGNMENT
from siri_megatron.weights.fleet_client import Deadline, FleetAddresses, FleetClient
from siri_megatron.weights.push import WeightPush

FLEETS = [(1,), (1, 2, 4), (4, 1), (2, 2)]


class Tensors:
    """A learner with some tensors of two dtypes; `flipped`: one of them is handed out transposed."""

    is_rank0 = True

    def __init__(self, seed: int, flipped: str = "") -> None:
        torch.manual_seed(seed)
        shapes = {"embed": (64, 32), "q": (32, 32), "norm": (7,), "big": (300, 32), "head": (64, 32)}
        self.tensors = {name: torch.randn(shape) for name, shape in shapes.items()}
        self.tensors["half"] = torch.randn(5, 3).bfloat16()
        self.flipped = flipped

    def export_tensors(self) -> Any:
        yield from ((name, tensor.t().contiguous() if name == self.flipped else tensor)
                    for name, tensor in self.tensors.items())


@pytest.fixture
def gloo_for_nccl(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The group's constructor, on both sides: gloo, whatever is asked for. Hands out what was asked for."""
    asked: list[str] = []

    def connect(store: Any, transport: str, **given: Any) -> transfer_group.TransferGroup:
        asked.append(transport)
        return transfer_group.connect(store, "gloo", **given)

    for module in (senders, engine_extension):
        monkeypatch.setattr(module, "connect", connect)
    monkeypatch.setattr(senders, "BUCKET_BYTES", 10_000)
    return asked


def config(place: Path, backend: str) -> RunConfig:
    given = fleet_config(Path("model"), place / "runs")
    push = given.push.model_copy(update={"backend": backend, "timeout_s": 30.0, "max_tries": 1})
    return given.model_copy(update={"push": push})


def pushed(place: Path, backend: str, tps: tuple[int, ...], *learners: Tensors) -> list[PlayedEngine]:
    """Played engines after a push of each learner in turn, over one connection."""
    with played_fleet(tps) as (played, engines):
        given, run_dir = listed(place, backend, engines)
        push = WeightPush(given, run_dir, learners[0], alone)
        for version, learner in enumerate(learners):
            push.learner = learner
            push.push(str(version))
        push.close()
    return played


def of(engine: PlayedEngine, method: str) -> list[dict[str, Any]]:
    return [kwargs for said, kwargs in engine.said if said == method]


@pytest.mark.parametrize("tps", FLEETS)
@pytest.mark.parametrize("backend", ["nccl", "gloo", "shm"])
def test_bits_arrive_at_every_worker(tmp_path: Path, gloo_for_nccl: list[str], backend: str,
                                     tps: tuple[int, ...]) -> None:
    first, second = Tensors(1), Tensors(2)
    for engine in pushed(tmp_path, backend, tps, first, second):
        assert engine.version == "1"
        for worker in engine.workers:
            found = worker.model.given
            assert list(found) == list(second.tensors)
            assert all(torch.equal(found[name], tensor) for name, tensor in second.tensors.items())
            assert {name: tensor.dtype for name, tensor in found.items()}["half"] == torch.bfloat16
    assert gloo_for_nccl == ([] if backend == "shm" else [backend] * (1 + sum(tps)))


def test_a_transposed_tensor_would_be_seen(tmp_path: Path, gloo_for_nccl: list[str]) -> None:
    [engine] = pushed(tmp_path, "nccl", (2,), Tensors(1, flipped="q"))
    wrong = [name for name, tensor in Tensors(1).tensors.items()
             if not torch.equal(engine.workers[1].model.given[name], tensor)]
    assert wrong == ["q"]


@pytest.mark.parametrize("tps", FLEETS)
def test_payloads(tmp_path: Path, gloo_for_nccl: list[str], tps: tuple[int, ...]) -> None:
    """Address, port, world size, cumulative offsets; names, dtypes, shapes, packed places; at the end the version."""
    source = Tensors(1)
    played = pushed(tmp_path, "nccl", tps, source)
    inits = [of(engine, "init_weight_transfer_engine") for engine in played]
    assert [len(said) for said in inits] == [1] * len(tps), "one connection for all pushes of an epoch"
    infos = [said[0]["init_info"] for said in inits]
    assert [set(info) for info in infos] == [{field.name for field in dataclasses.fields(TransferInit)}] * len(tps)
    assert {(info["transport"], info["host"], info["world_size"]) for info in infos} == {
        ("nccl", "127.0.0.1", 1 + sum(tps))}
    assert len({info["port"] for info in infos}) == 1
    assert [info["rank_offset"] for info in infos] == [1 + sum(tps[:i]) for i in range(len(tps))]
    for engine in played:
        updates = [kwargs["update_info"] for kwargs in of(engine, "update_weights")]
        assert len(updates) > 1, "several buckets"
        assert all(set(info) <= {field.name for field in dataclasses.fields(TransferUpdate)} for info in updates)
        slots = [slot for info in updates for slot in info["slots"]]
        assert [(name, kind, tuple(shape)) for name, kind, shape, _ in slots] == [
            (name, str(tensor.dtype).removeprefix("torch."), tuple(tensor.shape))
            for name, tensor in source.tensors.items()]
        for info in updates:
            ends = [offset + source.tensors[name].nbytes for name, _, _, offset in info["slots"]]
            starts = [offset for *_, offset in info["slots"]] + [info["size"]]
            assert starts[0] == 0
            assert all(0 <= start - end < ALIGNMENT for start, end in zip(starts[1:], ends, strict=True))
        order = [method for method, _ in engine.said]
        assert order == ["abandon_weight_update", "init_weight_transfer_engine", "start_weight_update",
                         *["update_weights"] * len(updates), "finish_weight_update"]
        assert engine.version == "0"


@pytest.mark.parametrize("tps", FLEETS)
def test_ranks_are_those_that_vllm_would_take(monkeypatch: pytest.MonkeyPatch, tps: tuple[int, ...]) -> None:
    """vLLM's own NCCL receiver, given our offsets, as the oracle. Its own trainer puts every engine at offset 1."""
    taken: list[int] = []
    monkeypatch.setattr(nccl_common, "stateless_init_process_group",
                        lambda address, port, rank, world, device: taken.append(rank))
    monkeypatch.setattr(torch.accelerator, "current_device_index", lambda: 0)
    ours = []
    for at, tp in enumerate(tps):
        for rank in range(tp):
            parallel, offset = receiver(tp, rank).parallel_config, 1 + sum(tps[:at])
            info = nccl_common.NCCLWeightTransferInitInfo(master_address="h", master_port=1, rank_offset=offset,
                                                          world_size=1 + sum(tps))
            nccl_common.worker_init_process_group(info, parallel)
            ours.append(offset + worker_number(parallel))
    assert ours == taken == list(range(1, 1 + sum(tps)))


def test_receiver_fits_the_base_class() -> None:
    """Every method that vLLM calls on a back end exists with its arguments; its abstract ones are all there."""
    base = engine_extension.WeightTransferEngine
    assert not WeightReceiver.__abstractmethods__
    for name in ("init_transfer_engine", "start_weight_update", "update_weights", "receive_weights",
                 "finish_weight_update", "shutdown"):
        assert list(inspect.signature(getattr(WeightReceiver, name)).parameters) == list(
            inspect.signature(getattr(base, name)).parameters), name
    assert inspect.isgeneratorfunction(unpinned_nccl_env.__wrapped__)


def test_unknown_fields_are_refused_by_vllm() -> None:
    """Control: a payload that does not fit the dataclass does not pass."""
    with pytest.raises(ValueError, match="Invalid init_info for WeightReceiver"):
        receiver(1, 0).parse_init_info({"transport": "nccl", "master_address": "h"})
    with pytest.raises(ValueError, match="Invalid update_info"):
        receiver(1, 0).parse_update_info({"names": [], "dtype_names": [], "shapes": []})


def test_torch_has_what_the_nccl_group_asks_for() -> None:
    """Read in torch's own stub: a CPU build has the stub, but not the class."""
    stub = Path(torch.__file__).parent / "_C" / "_distributed_c10d.pyi"
    classes = {node.name: node for node in ast.walk(ast.parse(stub.read_text())) if isinstance(node, ast.ClassDef)}
    backend, nccl = classes["Backend"], classes["ProcessGroupNCCL"]
    methods = {node.name: node for node in (*backend.body, *nccl.body) if isinstance(node, ast.FunctionDef)}
    assert [argument.arg for argument in methods["__init__"].args.args] == ["self", "store", "rank", "size", "options"]
    assert "abort" in methods
    assert "Options" in {node.name for node in nccl.body if isinstance(node, ast.ClassDef)}
    assert "_timeout" in ast.unparse(backend)


def test_engines_are_told_of_one_back_end() -> None:
    from siri_megatron.rollout.engine_args import engine_launch

    for backend in ("shm", "gloo", "nccl"):
        given = with_engines(config(Path("x"), backend), tp=2)
        argv = engine_launch(given, 0, 1, key_file=Path("k"), cores=[0]).argv
        assert json.loads(argv[argv.index("--weight-transfer-config") + 1]) == {"backend": "siri"}


def listed(place: Path, backend: str, engines: tuple[Engine, ...]) -> tuple[RunConfig, RunDir]:
    """A run directory that tells of these engines."""
    given = config(place, backend)
    run_dir = RunDir(given.run_dir)
    run_dir.root.mkdir(parents=True)
    run_dir.key.write_text("key")
    entries = [{"index": e.index, "url": e.url, "tp": e.tp} for e in engines]
    run_dir.fleet.write_text(json.dumps({"epoch": 1, "engines": entries, "model": "policy"}))
    return given, run_dir


def refuse(info: Any) -> None:
    raise RuntimeError("no memory left")


def test_an_update_that_fails_elsewhere_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """vLLM 0.32's executor leaves the other workers' answers in their queues when one raises: an engine of several
    workers that answered an error is not used again. The others, who did not, take the next push."""
    with played_fleet((2, 2, 1)) as (played, engines):
        given, run_dir = listed(tmp_path, "shm", engines)
        for worker in played[1].workers:
            monkeypatch.setattr(worker, "receive_weights", refuse)
        push = WeightPush(given, run_dir, Tensors(1), alone)
        with pytest.raises(EngineError, match=r"engine 1 at .* answered /update_weights with 500"):
            push.push("0")
        assert set(accusations(run_dir)) == {(1, 0)}
        assert [engine.version for engine in played] == ["", "", ""]
        fleet = json.loads(run_dir.fleet.read_text())
        run_dir.fleet.write_text(json.dumps({**fleet, "engines": [fleet["engines"][0], fleet["engines"][2]]}))
        assert push.push("1")["push_engines"] == 2
    assert [engine.version for engine in played] == ["1", "", "1"]


@pytest.mark.parametrize("backend", ["shm", "gloo"])
def test_what_a_sender_that_is_gone_has_begun_is_left(tmp_path: Path, backend: str) -> None:
    """Engines that somebody else started outlive a learner that is killed in mid-push: they are within its update, and
    paused. vLLM starts no other update then, and has no route to end this one."""
    with played_fleet((1, 2)) as (played, engines):
        given, run_dir = listed(tmp_path, backend, engines)
        killed = FleetClient(FleetAddresses(1, engines), "key")
        killed.start(Deadline(10.0, "a push"))
        killed.close()
        for engine in played:
            engine.paused = True
        assert WeightPush(given, run_dir, Tensors(1), alone).push("1")["push_tries"] == 1
    assert [engine.version for engine in played] == ["1", "1"]
    assert not any(engine.paused for engine in played)


def test_a_broken_broadcast_is_no_error_of_an_engine_of_several_workers(
        tmp_path: Path, gloo_for_nccl: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Over gloo and nccl one lost member breaks the broadcast for all: those of several workers stay in step, and take
    the next push in a new group."""
    with played_fleet((2, 1)) as (played, engines):
        given, run_dir = listed(tmp_path, "gloo", engines)
        given = given.model_copy(update={"push": given.push.model_copy(update={"timeout_s": 5.0})})
        push = WeightPush(given, run_dir, Tensors(1), alone)
        with monkeypatch.context() as patched:
            patched.setattr(played[1].workers[0], "receive_weights", refuse)
            with pytest.raises(EngineError, match=r"engine 1 at .* answered /update_weights with 500") as caught:
                push.push("0")
        assert "engine 0" not in caught.value.what
        assert any(worker.broken for worker in played[0].workers)
        assert accusations(run_dir) == {}
        assert push.push("1")["push_engines"] == 2
    assert [engine.version for engine in played] == ["1", "1"]
    assert not any(worker.broken for engine in played for worker in engine.workers)


@pytest.mark.parametrize("late", ["receive_weights", "finish_weight_update"])
def test_no_worker_packs_what_it_has_not_received(late: str) -> None:
    """A worker that was left alone says so at the next request, if the sender has not noticed."""
    worker = receiver(2, 1)
    worker.init_transfer_engine(TransferInit(host="127.0.0.1", port=1, rank_offset=1, world_size=3, timeout_s=0.2))
    with pytest.raises(RuntimeError, match=r"the group of this push is broken: .*127\.0\.0\.1"):
        getattr(worker, late)(*([TransferUpdate([], 0)] if late == "receive_weights" else []))
    with pytest.raises(RuntimeError, match=r"127\.0\.0\.1"):
        receiver(1, 0).init_transfer_engine(TransferInit(host="127.0.0.1", port=1, rank_offset=1, world_size=2,
                                                         timeout_s=0.2))
