"""Broken model directories are refused, by the tensor's name. (That good ones load: test_export, tests/learner.)"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from models import write_model
from safetensors.torch import load_file, save_file

from siri_megatron.errors import ModelError
from siri_megatron.learner.architecture import Architecture, read_config
from siri_megatron.weights.load import check_names, read_slice, tensor_files
from siri_megatron.weights.names import Part, tensors


@pytest.fixture
def model_dir(tmp_path: Path) -> Path:
    return write_model(tmp_path / "model", "qwen2")


def changed(path: Path, change: Callable[[dict[str, torch.Tensor]], Any]) -> None:
    tensors_of = load_file(path / "model.safetensors")
    change(tensors_of)
    save_file(tensors_of, path / "model.safetensors", metadata={"format": "pt"})


def refusal(path: Path) -> ModelError:
    """What loading all of it in this process says."""
    arch = Architecture.of(read_config(path))

    def read_all() -> None:
        files = tensor_files(path)
        check_names(files, arch, path)
        for part in tensors(arch):
            read_slice(files[part.name], part, (slice(None),) * len(part.shape))
    with pytest.raises(ModelError) as caught:
        read_all()
    assert caught.value.rule
    assert caught.value.fix
    return caught.value


NAME = "model.layers.1.mlp.up_proj.weight"


@pytest.mark.parametrize(("change", "says"), [
    (lambda state: state.pop(NAME), "lacks 1 tensors: " + NAME),
    (lambda state: state.update({"extra.weight": torch.ones(2)}), "surplus of 1 tensors: extra.weight"),
    (lambda state: state.update({NAME: torch.ones(48, 31)}), f"{NAME} in .*shape .48, 31.*asks for .48, 32"),
    (lambda state: state.update({NAME: torch.ones(48, 32, dtype=torch.int8)}), f"{NAME} in .* is of type I8"),
    (lambda state: state[NAME].view(-1)[7].fill_(float("nan")), f"{NAME} in .* not finite"),
    (lambda state: state[NAME].view(-1)[7].fill_(float("inf")), f"{NAME} in .* not finite"),
])
def test_a_wrong_tensor_is_named(model_dir: Path, change: Callable[..., Any], says: str) -> None:
    changed(model_dir, change)
    assert re.search(says, refusal(model_dir).what)


def test_no_weights_at_all(model_dir: Path) -> None:
    (model_dir / "model.safetensors").rename(model_dir / "pytorch_model.bin")
    assert "has no model.safetensors" in refusal(model_dir).what
    assert "pytorch_model.bin" in refusal(model_dir).what


def test_a_torn_file(model_dir: Path) -> None:
    file = model_dir / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    assert "model.safetensors cannot be read" in refusal(model_dir).what


def test_a_missing_shard(tmp_path: Path) -> None:
    path = write_model(tmp_path, "qwen2", shards=True)
    shard = sorted(path.glob("model-00002-of-*.safetensors"))[0]
    shard.unlink()
    assert f"{shard} cannot be read" in refusal(path).what


def test_a_broken_index(tmp_path: Path) -> None:
    path = write_model(tmp_path, "qwen2", shards=True)
    (path / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}}))
    assert "is not an index" in refusal(path).what


def test_a_stored_tied_head_must_be_the_embedding(tmp_path: Path) -> None:
    path = write_model(tmp_path, "qwen2_tied")
    arch = Architecture.of(read_config(path))
    changed(path, lambda state: state.update({"lm_head.weight": state["model.embed_tokens.weight"].clone()}))
    check_names(tensor_files(path), arch, path)
    changed(path, lambda state: state["lm_head.weight"].view(-1)[0].add_(1e-3))
    assert "lm_head.weight differs" in refusal(path).what


@pytest.mark.parametrize(("text", "says"), [(None, "has no config.json"), ("{", "is not JSON"), ("[]", "holds a list")])
def test_a_broken_config(model_dir: Path, text: str | None, says: str) -> None:
    (model_dir / "config.json").unlink() if text is None else (model_dir / "config.json").write_text(text)
    with pytest.raises(ModelError, match=says):
        read_config(model_dir)


def test_only_the_slice_is_read(model_dir: Path) -> None:
    """A rank neither reads nor judges what belongs to the others."""
    changed(model_dir, lambda state: state[NAME][40].fill_(float("nan")))
    part = Part(NAME, (48, 32))
    assert read_slice(model_dir / "model.safetensors", part, (slice(0, 24), slice(None))).shape == (24, 32)
    with pytest.raises(ModelError):
        read_slice(model_dir / "model.safetensors", part, (slice(24, 48), slice(None)))
