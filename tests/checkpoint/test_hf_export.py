"""Exports are plain Hugging Face directories: the same bits, loadable by transformers, whole or absent."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from models import load_model, make_model, write_model

from siri_megatron.checkpoint import hf_export
from siri_megatron.checkpoint.hf_export import export_hf
from siri_megatron.data.digit_tokenizer import write_tokenizer
from siri_megatron.errors import ModelError


class ModelSource:
    """A Hugging Face model in the place of a learner."""

    def __init__(self, model: torch.nn.Module, *, is_rank0: bool = True, fail_after: int = 10**9) -> None:
        self.model, self.is_rank0, self.fail_after, self.yielded = model, is_rank0, fail_after, 0

    def export_tensors(self) -> Iterator[tuple[str, torch.Tensor]]:
        for name, tensor in self.model.named_parameters():
            self.yielded += 1
            yield name, tensor.detach()


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = write_model(tmp_path / "source", "qwen2_tied", seed=1)
    write_tokenizer(path)
    (path / "modeling_custom.py").write_text("raise SystemExit")
    (path / "pytorch_model.bin").write_bytes(b"old weights")
    return path


@pytest.mark.parametrize("shard_bytes", [2**30, 20_000])
def test_transformers_loads_the_same_bits(source: Path, tmp_path: Path, shard_bytes: int) -> None:
    from transformers import AutoTokenizer

    model = make_model("qwen2_tied", seed=5)
    export_hf(ModelSource(model), source, tmp_path / "out", shard_bytes=shard_bytes)
    loaded = dict(load_model(tmp_path / "out").named_parameters())
    for name, tensor in model.named_parameters():
        assert torch.equal(loaded[name], tensor), name
    assert AutoTokenizer.from_pretrained(tmp_path / "out")("a1=")["input_ids"]


def test_an_index_only_if_sharded(source: Path, tmp_path: Path) -> None:
    model = make_model("qwen2_tied", seed=5)
    export_hf(ModelSource(model), source, tmp_path / "one")
    export_hf(ModelSource(model), source, tmp_path / "many", shard_bytes=20_000)
    assert [path.name for path in (tmp_path / "one").glob("model*")] == ["model.safetensors"]
    index = json.loads((tmp_path / "many" / "model.safetensors.index.json").read_text())
    assert set(index["weight_map"]) == {name for name, _ in model.named_parameters()}
    assert index["metadata"]["total_size"] == sum(tensor.nbytes for tensor in model.parameters())
    assert len(set(index["weight_map"].values())) > 1


def test_only_companions_are_copied(source: Path, tmp_path: Path) -> None:
    export_hf(ModelSource(make_model("qwen2_tied").to(torch.bfloat16)), source, tmp_path / "out")
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert {"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"} <= names
    assert not names & {"modeling_custom.py", "pytorch_model.bin"}
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert "bfloat16" in (config.get("dtype"), config.get("torch_dtype"))


def test_an_older_export_is_replaced_and_nothing_is_left_beside(source: Path, tmp_path: Path) -> None:
    place = tmp_path / "exports"
    (place / ".tag.part").mkdir(parents=True)  # debris of a killed export
    for seed in (1, 2):
        model = make_model("qwen2_tied", seed=seed)
        export_hf(ModelSource(model), source, place / "tag")
    assert [path.name for path in place.iterdir()] == ["tag"]
    assert torch.equal(load_model(place / "tag").model.norm.weight, model.model.norm.weight)


def test_failure_leaves_the_former_export_and_drains_the_collective(source: Path, tmp_path: Path) -> None:
    model = make_model("qwen2_tied", seed=1)
    export_hf(ModelSource(model), source, tmp_path / "out")
    before = (tmp_path / "out" / "model.safetensors").read_bytes()
    (source / "config.json").unlink()
    learner = ModelSource(make_model("qwen2_tied", seed=2))
    with pytest.raises(ModelError, match="no config"):
        export_hf(learner, source, tmp_path / "out")
    assert (tmp_path / "out" / "model.safetensors").read_bytes() == before
    assert learner.yielded == len(list(model.parameters()))


def test_other_ranks_only_take_part(source: Path, tmp_path: Path) -> None:
    learner = ModelSource(make_model("qwen2_tied"), is_rank0=False)
    export_hf(learner, source, tmp_path / "out")
    assert learner.yielded
    assert not (tmp_path / "out").exists()


def test_files_and_their_names_are_on_disk_before_the_export_appears(source: Path, tmp_path: Path,
                                                                    monkeypatch: pytest.MonkeyPatch) -> None:
    """A power cut after the rename would else leave a directory without some of its files."""
    synced: list[Path] = []
    monkeypatch.setattr(hf_export, "sync_path", synced.append)
    export_hf(ModelSource(make_model("qwen2_tied", seed=5)), source, tmp_path / "out")
    part = tmp_path / ".out.part"
    assert set(synced) == {part, *(part / file.name for file in (tmp_path / "out").iterdir())}
