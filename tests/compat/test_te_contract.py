"""The te spec against Transformer Engine's and megatron-core's own sources. A machine without a GPU can go this far.

A process of its own (te_report.py) plays a GPU machine: it imports Transformer Engine's Python without its compiled
kernels, and the learner builds its models as it would there. So constructor arguments bind to the real signatures, and
names, shapes and marks are those of the real layers. What the kernels compute is not looked at.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from large_models import CASES
from models import make_model, write_model
from tool_modules import tool

from siri_megatron.learner.architecture import Architecture, read_config
from siri_megatron.weights.names import Entry, stage_entries, tied_head
from siri_megatron.weights.shards import join, local_shape

pytestmark = pytest.mark.compat

ROOT = Path(__file__).resolve().parents[2]
KINDS = ("qwen2", "qwen3_tied", "llama")
TP, PP = 2, 2
NORMS = ("layer_norm_weight", "layernorm.weight")


def transformer_engine() -> Path:
    """The unpacked wheel."""
    wheels = tool("wheels")
    return next(wheel.directory() for wheel in wheels.read_lock() if wheel.name == "transformer-engine")


def reported(directory: Path, engine: Path) -> dict[str, Any]:
    for kind in KINDS:
        write_model(directory / kind, kind)
    path = [*os.environ["PYTHONPATH"].split(os.pathsep), str(engine), str(ROOT / "tests")]
    command = [sys.executable, str(ROOT / "tests" / "compat" / "te_report.py"), str(directory)]
    said = subprocess.run(command, env=os.environ | {"PYTHONPATH": os.pathsep.join(path)}, capture_output=True,
                          text=True, timeout=600, check=False)
    assert said.returncode == 0, said.stderr[-3000:]
    return json.loads((directory / "report.json").read_text())


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("te")


@pytest.fixture(scope="module")
def report(place: Path) -> dict[str, Any]:
    return reported(place, transformer_engine())


def entries_of(arch: Architecture, stage: int, stages: int) -> list[Entry]:
    return stage_entries(arch, stage, stages) + tied_head(arch, stage, stages)


def faults_of(entries: list[Entry], parameters: dict[str, Any], arch: Architecture, tp: int) -> list[str]:
    """Where the parameters that Transformer Engine made differ from what the name map says of them."""
    wanted = {entry.fused_parameter: entry for entry in entries}
    faults = [f"{name} is in {'the map' if name in wanted else 'the model'} only"
              for name in wanted.keys() ^ parameters.keys()]
    for name in wanted.keys() & parameters.keys():
        entry, made = wanted[name], parameters[name]
        if (tuple(made["shape"]), made["cut"]) != (local_shape(entry, arch, tp), entry.split):
            faults.append(f"{name} is {made}, the map says {local_shape(entry, arch, tp)} cut along {entry.split}")
    return faults


@pytest.mark.parametrize("kind", KINDS)
def test_names_shapes_and_cuts(report: dict[str, Any], place: Path, kind: str) -> None:
    """Norms fused into the linear layer behind them, qk-norms and biases under their own names."""
    arch = Architecture.of(read_config(place / kind))
    for rank, made in enumerate(report["small"][kind]):
        assert faults_of(entries_of(arch, rank // TP, PP), made["parameters"], arch, TP) == []
        assert {value["dtype"] for value in made["parameters"].values()} == {"torch.bfloat16"}


def test_names_and_shapes_of_a_large_model(report: dict[str, Any]) -> None:
    case = CASES["7b-tp4-pp4"]
    arch = Architecture.of(case.config)
    for stage, made in enumerate(report["large"]["7b-tp4-pp4"]):
        shapes = {name: tuple(value["shape"]) for name, value in made["parameters"].items()}
        assert shapes == {entry.fused_parameter: local_shape(entry, arch, case.layout.tp)
                          for entry in entries_of(arch, stage, case.layout.pp)}


@pytest.mark.parametrize("kind", KINDS)
def test_loaded_bit_exact(report: dict[str, Any], place: Path, kind: str) -> None:
    """load_hf fills Transformer Engine's parameters: joined over the ranks they are the model's tensors."""
    assert report
    arch, wanted = Architecture.of(read_config(place / kind)), make_model(kind).to(torch.bfloat16).state_dict()
    ranks = [torch.load(place / kind / f"rank{rank}.pt") for rank in range(TP * PP)]
    found: dict[str, torch.Tensor] = {}
    for stage in range(PP):
        for entry in stage_entries(arch, stage, PP):
            shards = [ranks[stage * TP + tp][entry.fused_parameter] for tp in range(TP)]
            found |= join(entry, shards, arch)
    assert found.keys() == {name for name in wanted if not (arch.tied and name == "lm_head.weight")}
    assert all(torch.equal(found[name], wanted[name]) for name in found)


@pytest.mark.parametrize("kind", KINDS)
def test_norms_know_of_sequence_parallelism(report: dict[str, Any], kind: str) -> None:
    """`finalize_model_grads` sums a norm's gradient over the tensor-parallel ranks if its weight carries the mark."""
    for made in report["small"][kind]:
        marked = {name for name, value in made["parameters"].items() if value["partial"]}
        assert marked == {name for name in made["parameters"] if name.endswith(NORMS)}
        assert marked


@pytest.mark.parametrize("kind", KINDS)
def test_checkpoints_are_those_of_the_local_spec(report: dict[str, Any], kind: str) -> None:
    """A checkpoint that was written with one spec has exactly the entries that the other asks for."""
    for made in report["small"][kind]:
        assert made["stored"] == made["local"]
        assert len(made["stored"]) > 5


def test_packed_rows_are_handed_on(report: dict[str, Any]) -> None:
    """Every field of PackedSeqParams that megatron-core hands to the attention is an argument of it."""
    handed, taken = report["attention"]["handed"], report["attention"]["taken"]
    assert set(handed) <= set(taken)
    assert {"qkv_format", "cu_seqlens_q", "cu_seqlens_kv", "max_seqlen_q", "max_seqlen_kv", "cu_seqlens_q_padded",
            "cu_seqlens_kv_padded"} <= set(handed)


def test_the_attention_knows_the_context_parallel_ranks(report: dict[str, Any]) -> None:
    """The ring over both of them, in megatron-core's order of ranks (tensor parallel 4, context parallel 2)."""
    assert report["context_parallel"] == {"size": 2, "ranks": [0, 4], "comm_type": "p2p"}


def test_positions_restart_with_each_segment(report: dict[str, Any]) -> None:
    """Transformer Engine's rotary over our packed row is the local spec's. Control: without segments it is not."""
    assert report["fused_rotary"]
    assert report["rotary"]["right"] < 1e-6
    assert report["rotary"]["one_segment"] > 1e-2


def test_positions_of_a_context_parallel_part(report: dict[str, Any]) -> None:
    """The same over each rank's part: Transformer Engine reads it as cut zigzag out of each segment, as ours is."""
    assert report["rotary"]["parts"] < 1e-6


def test_a_renamed_parameter_is_noticed(report: dict[str, Any], place: Path, tmp_path: Path) -> None:
    """Negative control: Transformer Engine calls the fused norm's weight something else."""
    assert report
    engine = tmp_path / "engine"
    shutil.copytree(transformer_engine(), engine)
    source = engine / "transformer_engine" / "pytorch" / "module" / "layernorm_linear.py"
    source.write_text(source.read_text().replace("layer_norm_weight", "norm_scale"))
    with pytest.raises(AssertionError, match=r"KeyError: .*linear_qkv\.layer_norm_weight"):
        reported(tmp_path, engine)


def test_a_wrong_map_is_noticed(report: dict[str, Any], place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Negative control: the map believes in another name."""
    arch, made = Architecture.of(read_config(place / "llama")), report["small"]["llama"][0]["parameters"]
    monkeypatch.setattr("siri_megatron.weights.names.FUSED_NORMS",
                        {"input_layernorm.weight": "self_attention.linear_qkv.norm.weight"})
    assert len(faults_of(entries_of(arch, 0, PP), made, arch, TP)) == 4
