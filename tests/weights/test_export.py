"""What was loaded is exported with every bit, from every layout."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from models import Kind, make_model, write_model
from ranks import Rank, Ranks

from siri_megatron.config import AlgorithmConfig, LearnerConfig, ModelConfig, OptimizerConfig
from siri_megatron.learner.architecture import Architecture, read_config
from siri_megatron.learner.settings import LearnerSettings
from siri_megatron.weights.names import tensors

LAYOUTS = {"tp2": {"tp": 2}, "pp2": {"pp": 2}, "dp2": {"dp": 2}, "pp2 vpp2": {"pp": 2, "vpp": 2}}


@pytest.fixture(scope="module")
def ranks() -> Iterator[Ranks]:
    with Ranks(2) as pool:
        yield pool


def given_settings(path: Path, layout: dict[str, int], dtype: Any = "float32") -> LearnerSettings:
    return LearnerSettings(ModelConfig(path=path, dtype=dtype), LearnerConfig(**layout), OptimizerConfig(lr=1e-3),
                           AlgorithmConfig(), 1.0, "packed", 160, 64, 1)


def exported(rank: Rank, settings: LearnerSettings, bucket_bytes: int) -> tuple[list[str], dict[str, torch.Tensor]]:
    """Twice: whole model in one bucket, and in small ones."""
    from siri_megatron.weights.export import export_tensors
    with rank.learner(settings) as learner:
        names = [name for name, _ in learner.export_tensors()]
        small = export_tensors(learner.chunks, learner.architecture, bucket_bytes=bucket_bytes)
        return names, dict(small)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("kind", ["qwen2_tied", "qwen2", "qwen3", "llama"])
def test_bit_exact_round_trip(ranks: Ranks, tmp_path: Path, kind: Kind, layout: str) -> None:
    """From several shards, through every layout, to the full tensors in the table's order, on every rank."""
    path = write_model(tmp_path, kind, shards=True, num_hidden_layers=4)
    arch = Architecture.of(read_config(path))
    wanted = make_model(kind, num_hidden_layers=4).state_dict()
    for names, found in ranks.run(exported, given_settings(path, LAYOUTS[layout]), 3000):
        assert names == list(found) == [part.name for part in tensors(arch)]
        assert all(torch.equal(found[name], wanted[name]) for name in names)


def test_bfloat16_round_trip(ranks: Ranks, tmp_path: Path) -> None:
    model = make_model("qwen3").to(torch.bfloat16)
    model.save_pretrained(tmp_path)
    for _, found in ranks.run(exported, given_settings(tmp_path, {"tp": 2}, "bfloat16"), 3000):
        assert all(torch.equal(found[name], value) for name, value in model.state_dict().items())
