"""megatron-core's own loader reads what we write, on real ranks; and we read what real learners save."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from conversions import back, bits_equal, loaded, quiet, there
from models import write_model
from ranks import Rank, Ranks

from siri_megatron.checkpoint import saver
from siri_megatron.config import AlgorithmConfig, LearnerConfig, ModelConfig, OptimizerConfig, RunConfig, validate
from siri_megatron.config import save as save_config
from siri_megatron.convert.common_state import in_megatron_lm
from siri_megatron.convert.convert import Options, reshard
from siri_megatron.convert.hf import HfWeights
from siri_megatron.convert.logits import compare_logits
from siri_megatron.convert.megatron import MegatronWeights
from siri_megatron.convert.write import without_sums
from siri_megatron.errors import ModelError
from siri_megatron.learner.architecture import Architecture, read_config
from siri_megatron.learner.rope import Rope
from siri_megatron.learner.settings import LearnerSettings
from siri_megatron.paths import RunDir

TP4, TP2, PP2, FOUR = {"tp": 4}, {"tp": 2, "dp": 2}, {"pp": 2, "dp": 2}, {"tp": 2, "pp": 2}
CASES = [("qwen2", TP4), ("qwen3_tied", TP4), ("qwen2_tied", TP2), ("qwen3", TP2), ("qwen3_tied", PP2), ("qwen3", PP2),
         ("qwen2_tied", FOUR), ("llama", FOUR)]
"""Every family; every cut of the vocabulary and every number of stages with tied and with untied embeddings."""
SIZES = {"num_hidden_layers": 4, "num_key_value_heads": 4}


@pytest.fixture(scope="module")
def ranks() -> Iterator[Ranks]:
    with Ranks(4) as pool:
        yield pool


def read_by_megatron(rank: Rank, model_dir: Path, state: Path, layout: dict[str, int]) -> tuple[list[str], bool]:
    """Parameters that differ between `dist_checkpointing.load` and `load_hf`; whether they differed before.

    Everything that megatron itself asks for is asked for, module states too.
    """
    from megatron.core import dist_checkpointing

    from siri_megatron.learner.groups import start_groups, stop_groups
    from siri_megatron.learner.model import build_model, transformer_config
    from siri_megatron.weights.load import load_hf
    given = LearnerConfig(**layout)
    arch = Architecture.of(read_config(model_dir))
    with rank.control(given) as control:
        start_groups(given, control, 1)
        try:
            config = transformer_config(arch, given, ModelConfig(path=model_dir))
            one, other = (build_model(arch, config, "local", context=64) for _ in range(2))
            load_hf(one, arch, model_dir)
            noise = not all(torch.equal(a, b) for a, b in
                            zip(one[0].parameters(), other[0].parameters(), strict=True))
            stored = dist_checkpointing.load({"model": other[0].sharded_state_dict()}, str(state))
            other[0].load_state_dict(stored["model"])
            read = dict(other[0].named_parameters())
            return [name for name, value in one[0].named_parameters() if not torch.equal(value, read[name])], noise
        finally:
            stop_groups()


@pytest.mark.parametrize(("kind", "layout"), CASES, ids=str)
def test_as_megatron_saves(ranks: Ranks, tmp_path: Path, kind: Any, layout: dict[str, int]) -> None:
    """In the layout it was converted for, and from a checkpoint for one rank (other padding)."""
    model = write_model(tmp_path / "model", kind, **SIZES)
    there(model, tmp_path / "same", tp=layout.get("tp", 1), pp=layout.get("pp", 1))
    there(model, tmp_path / "one")
    for checkpoint in ("same", "one"):
        for different, noise in ranks.run(read_by_megatron, model, tmp_path / checkpoint / "release", layout):
            assert different == []
            assert noise  # before loading the two differed


def trained_run(rank: Rank, model_dir: Path, root: Path, layout: dict[str, int],
                dtype: str) -> dict[str, torch.Tensor]:
    """A committed step of a run; its weights as the learner exports them."""
    settings = LearnerSettings(ModelConfig(path=model_dir, dtype=dtype),
                               LearnerConfig(**layout), OptimizerConfig(lr=1e-2),
                               AlgorithmConfig(), 1.0, "packed", 64, 64, seed=1)
    with rank.learner(settings) as learner:
        learner.sft_step([([1, 2, 3], [4, 5, 6], 0.3), ([3, 2], [1, 4], 0.3)], lr=1e-2)
        saver.save(RunDir(root), learner, run_config(model_dir), step=1, tag=None, decisions={"controller": {}})
        return {name: tensor.clone() for name, tensor in learner.export_tensors()}


def run_config(model_dir: Path) -> RunConfig:
    return validate({"name": "x", "model": {"path": str(model_dir)}, "optimizer": {"lr": 1e-3},
                     "budget": {"l_min": 16, "l_max": 32, "cycle_steps": 4, "cycles": 2}}, "test")


@pytest.mark.parametrize(("layout", "dtype"), [({"tp": 2, "pp": 2}, "float32"), ({"tp": 4}, "bfloat16"),
                                               ({"dp": 4}, "float32")], ids=str)
def test_checkpoint_of_a_run(ranks: Ranks, tmp_path: Path, layout: dict[str, int], dtype: str) -> None:
    """Weights after an update, optimizer state left alone, config and tokenizer from the run's model.path; the logits
    of its model and of what it was converted to are the same."""
    model = write_model(tmp_path / "model", "qwen2_tied", num_key_value_heads=4)
    run = RunDir(tmp_path / "run")
    exported = ranks.run(trained_run, model, run.root, layout, dtype)[0]
    save_config(run_config(model), run.config)
    for source in (run.checkpoint(1), run.checkpoint(1) / "megatron"):
        back(source, tmp_path / "again", verify=True)
        assert bits_equal(loaded(tmp_path / "again"), exported)
    compare_logits(HfWeights.open(tmp_path / "again"), MegatronWeights.open(run.checkpoint(1)), [[1, 2, 3, 4], [7, 8]])
    assert not bits_equal(loaded(tmp_path / "again"), loaded(model))  # it was trained
    reshard(run.checkpoint(1), tmp_path / "resharded", tp=2, pp=1, hf=None, options=Options(verify=True),
            progress=quiet)
    back(tmp_path / "resharded", tmp_path / "again")
    assert bits_equal(loaded(tmp_path / "again"), exported)


def test_an_uncommitted_step_is_refused(ranks: Ranks, tmp_path: Path) -> None:
    model = write_model(tmp_path / "model", "qwen2", num_key_value_heads=4)
    run = RunDir(tmp_path / "run")
    ranks.run(trained_run, model, run.root, {"tp": 4}, "float32")
    with pytest.raises(ModelError, match=r"no config.json for .*looked in"):
        back(run.checkpoint(1), tmp_path / "again")
    back(run.checkpoint(1), tmp_path / "again", hf=model)
    (run.checkpoint(1) / "commit.json").write_text(json.dumps({})[:1])
    with pytest.raises(ModelError, match=r"commit.json is damaged"):
        back(run.checkpoint(1), tmp_path / "other", hf=model)
    (run.checkpoint(1) / "commit.json").unlink()
    with pytest.raises(ModelError, match=r"has no commit.json"):
        back(run.checkpoint(1), tmp_path / "other", hf=model)


def test_chunks_carry_no_sums(tmp_path: Path) -> None:
    """torch.load takes them all the same: so do megatron's loader (above) and a plain reader. Control: a plain save."""
    with without_sums():
        torch.save(torch.arange(9.0), tmp_path / "without")
    torch.save(torch.arange(9.0), tmp_path / "with")
    assert torch.equal(torch.load(tmp_path / "without"), torch.arange(9.0))
    for name, bad in (("without", True), ("with", False)):
        assert (zipfile.ZipFile(tmp_path / name).testzip() is not None) == bad


@pytest.mark.parametrize(("rope", "known"), [
    (Rope(), True), (Rope("linear", factor=2.5), True), (Rope("llama3", factor=8.0, original_positions=8192), True),
    (Rope("llama3", factor=8.0, original_positions=64), False), (Rope("yarn", factor=4.0), False)])
def test_rotary_tables_that_megatron_lm_knows(rope: Rope, known: bool) -> None:
    assert in_megatron_lm(rope) == known
