"""What is wrong with a source is refused by name, and leaves nothing behind: no output, no hidden directory."""

from __future__ import annotations

import json
import os
import pickle
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conversions import back, quiet, siblings, there
from models import write_model
from safetensors.torch import load_file, save_file

from siri_megatron.convert.convert import Options, reshard
from siri_megatron.convert.grid import slots
from siri_megatron.convert.hf import HfWeights
from siri_megatron.convert.megatron import MegatronWeights
from siri_megatron.errors import ConfigError, ModelError, SiriError

NAME = "model.layers.1.mlp.up_proj.weight"
KEY = "decoder.layers.mlp.linear_fc2.weight"
SOURCES = ["given", "megatron", "model"]


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return write_model(tmp_path / "model", "qwen2", num_key_value_heads=4)


@pytest.fixture
def checkpoint(model: Path, tmp_path: Path) -> Path:
    return there(model, tmp_path / "megatron", tp=2, pp=2)


def refused(tmp_path: Path, convert: Callable[[], Any], says: str, kind: type[SiriError] = ModelError) -> None:
    before = siblings(tmp_path / "out")
    with pytest.raises(kind) as caught:
        convert()
    assert re.search(says, caught.value.what), caught.value.what
    assert caught.value.rule
    assert caught.value.fix
    assert siblings(tmp_path / "out") == before


def rewrite(model: Path, change: Callable[[dict[str, torch.Tensor]], Any]) -> None:
    state = load_file(model / "model.safetensors")
    change(state)
    save_file(state, model / "model.safetensors", metadata={"format": "pt"})


def set_field(directory: Path, **fields: Any) -> None:
    config = json.loads((directory / "config.json").read_text())
    (directory / "config.json").write_text(json.dumps(config | fields))


@pytest.mark.parametrize(("change", "says"), [
    (lambda state: state.pop(NAME), "lacks 1 tensors: " + NAME),
    (lambda state: state.update({"extra.weight": torch.ones(2)}), "surplus of 1 tensors: extra.weight"),
    (lambda state: state.update({NAME: torch.ones(48, 31)}), f"{NAME} .*shape .48, 31.*asks for .48, 32"),
    (lambda state: state.update({NAME: torch.ones(48, 32, dtype=torch.int8)}), f"{NAME} .* type I8"),
    (lambda state: state.update({NAME: state[NAME].bfloat16()}), f"{NAME} .* type BF16, most are float32"),
    (lambda state: state.update({NAME: state[NAME].double()}), f"{NAME} .* type F64"),
])
def test_a_wrong_tensor_of_a_model(model: Path, tmp_path: Path, change: Callable[..., Any], says: str) -> None:
    rewrite(model, change)
    refused(tmp_path, lambda: there(model, tmp_path / "out", tp=2), says)


def test_an_untied_copy_of_a_tied_head(tmp_path: Path) -> None:
    model = write_model(tmp_path / "model", "qwen2_tied")
    rewrite(model, lambda state: state.update({"lm_head.weight": torch.ones(37, 32)}))
    refused(tmp_path, lambda: there(model, tmp_path / "out"), "lm_head.weight differs from model.embed_tokens.weight")


@pytest.mark.parametrize("cut", [1, 1000, 10**9])
def test_a_truncated_shard(tmp_path: Path, cut: int) -> None:
    model = write_model(tmp_path / "model", "qwen2", shards=True)
    shard = sorted(model.glob("model-00002-of-*.safetensors"))[0]
    shard.write_bytes(shard.read_bytes()[:-cut])
    refused(tmp_path, lambda: there(model, tmp_path / "out"), re.escape(str(shard)))


def test_a_missing_shard(tmp_path: Path) -> None:
    model = write_model(tmp_path / "model", "qwen2", shards=True)
    shard = sorted(model.glob("model-00002-of-*.safetensors"))[0]
    shard.unlink()
    refused(tmp_path, lambda: there(model, tmp_path / "out"), f"lacks {re.escape(shard.name)}")


@pytest.mark.parametrize(("fields", "says"), [
    ({"vocab_size": 38}, "model.embed_tokens.weight .*37, 32.* asks for .38, 32"),
    ({"num_hidden_layers": 3}, "lacks 12 tensors: model.layers.2"),
    ({"num_attention_heads": 8, "head_dim": 8}, "q_proj"),
])
def test_a_model_that_is_not_its_config(model: Path, tmp_path: Path, fields: dict[str, Any], says: str) -> None:
    set_field(model, **fields)
    refused(tmp_path, lambda: there(model, tmp_path / "out"), says)


@pytest.mark.parametrize(("fields", "says"), [
    ({"vocab_size": 36}, "embedding.word_embeddings.weight .*38, 32.*36, 32.*vocab_size=36"),
    ({"num_hidden_layers": 3}, "num_layers=2 in .*asks for 3"),
    ({"num_attention_heads": 2, "num_key_value_heads": 2, "head_dim": 16}, "num_attention_heads=4 in .*asks for 2"),
    ({"rope_parameters": {"rope_type": "default", "rope_theta": 5e5}}, "rotary_base=10000 in .*asks for 500000"),
    ({"tie_word_embeddings": True}, "untie_embeddings_and_output_weights=True in .*asks for False"),
])
def test_a_checkpoint_that_is_not_its_config(checkpoint: Path, tmp_path: Path, fields: dict[str, Any],
                                             says: str) -> None:
    """slime#1059: converter does not compare configs."""
    set_field(checkpoint / "hf", **fields)
    refused(tmp_path, lambda: back(checkpoint, tmp_path / "out"), says)


@pytest.mark.parametrize(("fields", "says"), [
    ({"num_hidden_layers": 3}, r"shape \[2, .*asks for \[3, .*num_hidden_layers=3"),
    ({"intermediate_size": 64}, "linear_fc1.*intermediate_size"),
    ({"tie_word_embeddings": True}, "surplus of 1 tensors: output_layer.weight"),
    ({"model_type": "llama"}, "surplus of 1 tensors: decoder.layers.self_attention.linear_qkv.bias"),
    ({"model_type": "qwen3"}, "lacks 2 tensors: decoder.layers.self_attention.k_layernorm.weight"),
])
def test_shapes_tell_where_a_checkpoint_has_no_arguments(checkpoint: Path, tmp_path: Path, fields: dict[str, Any],
                                                         says: str) -> None:
    """As in the checkpoints of a run."""
    torch.save({"updates": 3}, checkpoint / "release" / "common.pt")
    set_field(checkpoint / "hf", **fields)
    refused(tmp_path, lambda: back(checkpoint, tmp_path / "out"), says)


def edit_metadata(checkpoint: Path, change: Callable[[Any], Any]) -> None:
    path = checkpoint / "release" / ".metadata"
    metadata = pickle.loads(path.read_bytes())
    change(metadata)
    path.write_bytes(pickle.dumps(metadata))


def without_tensor(metadata: Any) -> None:
    del metadata.state_dict_metadata[KEY]


def with_tensor(metadata: Any) -> None:
    known = metadata.state_dict_metadata
    known["decoder.extra.weight"] = known["decoder.final_layernorm.weight"]
    for index in [index for index in metadata.storage_data if index.fqn == "decoder.final_layernorm.weight"]:
        metadata.storage_data[type(index)("decoder.extra.weight", index.offset)] = metadata.storage_data[index]


def without_chunk(metadata: Any) -> None:
    index = next(index for index in metadata.storage_data if index.fqn == KEY)
    del metadata.storage_data[index]


def with_a_gap(metadata: Any) -> None:
    metadata.state_dict_metadata[KEY].chunks.pop()


def other_type(metadata: Any) -> None:
    metadata.state_dict_metadata[KEY].properties.dtype = torch.bfloat16


def wider_type(metadata: Any) -> None:
    metadata.state_dict_metadata[KEY].properties.dtype = torch.float64


def with_an_overlap(metadata: Any) -> None:
    """As many elements as the tensor has, but some twice and some never."""
    chunk = metadata.state_dict_metadata[KEY].chunks[1]
    index = next(index for index in metadata.storage_data if index.fqn == KEY and index.offset == chunk.offsets)
    info = metadata.storage_data.pop(index)
    chunk.offsets = torch.Size((chunk.offsets[0], chunk.offsets[1], chunk.offsets[2] // 2))
    metadata.storage_data[type(index)(KEY, chunk.offsets)] = info


def without_a_number(metadata: Any) -> None:
    for info in metadata.storage_data.values():
        info.offset = "0"
        info.length = None


def of_other_dimensions(metadata: Any) -> None:
    metadata.state_dict_metadata[KEY].chunks[0].sizes = torch.Size((1, 32))


def outside(metadata: Any) -> None:
    for index, info in metadata.storage_data.items():
        if index.fqn == KEY:
            info.relative_path = "../../model/config.json"


@pytest.mark.parametrize(("change", "says"), [
    (without_tensor, f"lacks 1 tensors: {KEY}"),
    (with_tensor, "surplus of 1 tensors: decoder.extra.weight"),
    (without_chunk, f"{KEY} .* the chunk at .* has 0 bytes"),
    (with_a_gap, f"{KEY} .* chunks do not make up"),
    (with_an_overlap, f"{KEY} .* chunks do not make up"),
    (without_a_number, "no index"),
    (of_other_dimensions, "no index"),
    (other_type, f"{KEY} .* type bfloat16, most are float32"),
    (wider_type, f"{KEY} .* the chunk at .* its shape asks for"),
    (outside, "no index"),
])
def test_a_wrong_index(checkpoint: Path, tmp_path: Path, change: Callable[[Any], None], says: str) -> None:
    edit_metadata(checkpoint, change)
    refused(tmp_path, lambda: back(checkpoint, tmp_path / "out"), says)


class Hostile:
    """Unpickling it makes a file."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.mark,))


def test_hostile_negative_control(tmp_path: Path) -> None:
    pickle.loads(pickle.dumps(Hostile(tmp_path / "mark")))
    assert (tmp_path / "mark").exists()


def test_a_hostile_index_runs_nothing(checkpoint: Path, tmp_path: Path) -> None:
    (checkpoint / "release" / ".metadata").write_bytes(pickle.dumps(Hostile(tmp_path / "mark")))
    refused(tmp_path, lambda: back(checkpoint, tmp_path / "out"), r"cannot be read: UnpicklingError: it asks for ")
    assert not (tmp_path / "mark").exists()


def test_hostile_arguments_run_nothing(checkpoint: Path, tmp_path: Path) -> None:
    torch.save({"args": Hostile(tmp_path / "mark")}, checkpoint / "release" / "common.pt")
    refused(tmp_path, lambda: back(checkpoint, tmp_path / "out"), r"common.pt cannot be read")
    assert not (tmp_path / "mark").exists()


@pytest.mark.parametrize("cut", [1, 5000, 10**9])
def test_a_truncated_file(checkpoint: Path, tmp_path: Path, cut: int) -> None:
    file = checkpoint / "release" / "__1_0.distcp"
    file.write_bytes(file.read_bytes()[:-cut])
    refused(tmp_path, lambda: back(checkpoint, tmp_path / "out"), f"{re.escape(str(file))} has .* bytes")


@pytest.mark.parametrize("name", ["__2_0.distcp", ".metadata", "common.pt", "metadata.json"])
def test_a_missing_file(checkpoint: Path, tmp_path: Path, name: str) -> None:
    (checkpoint / "release" / name).unlink()
    refused(tmp_path, lambda: back(checkpoint, tmp_path / "out"), "no Megatron checkpoint" if "json" in name else name)


def test_a_scribbled_file(checkpoint: Path, tmp_path: Path) -> None:
    """As long as it should be, but the archives in it are gone: found in the middle of the conversion."""
    file = checkpoint / "release" / "__3_0.distcp"
    file.write_bytes(bytes(len(file.read_bytes())))
    for convert in (lambda: back(checkpoint, tmp_path / "out"),
                    lambda: reshard(checkpoint, tmp_path / "out", tp=1, pp=1, hf=None, options=Options(),
                                    progress=quiet)):
        refused(tmp_path, convert, f"{re.escape(str(file))} cannot be read at byte")


def test_a_file_that_shrinks_meanwhile(model: Path, checkpoint: Path, tmp_path: Path) -> None:
    """Refused before it is mapped: touching a mapping beyond the end of its file kills the process (SIGBUS)."""
    hf, megatron = HfWeights.open(model), MegatronWeights.open(checkpoint)
    for file in (model / "model.safetensors", *(checkpoint / "release").glob("*.distcp")):
        os.truncate(file, file.stat().st_size // 3)
    last = slots(hf.arch)[-1]
    for weights in (hf, megatron):
        with pytest.raises(ModelError, match="cannot be read"):
            weights.tensors(last)


def test_impossible_layouts(model: Path, checkpoint: Path, tmp_path: Path) -> None:
    refused(tmp_path, lambda: there(model, tmp_path / "out", tp=3), "tp=3 does not divide", ConfigError)
    refused(tmp_path, lambda: reshard(checkpoint, tmp_path / "out", tp=1, pp=4, hf=None, options=Options(),
                                      progress=quiet), "pp=4 does not divide", ConfigError)


def test_a_source_that_is_something_else(model: Path, checkpoint: Path, tmp_path: Path) -> None:
    refused(tmp_path, lambda: back(model, tmp_path / "out"), "it is a Hugging Face directory")
    refused(tmp_path, lambda: back(tmp_path / "nowhere", tmp_path / "out"), "it does not exist")
    refused(tmp_path, lambda: there(checkpoint, tmp_path / "out"), "has no config.json")
    shutil.rmtree(checkpoint / "hf")
    refused(tmp_path, lambda: back(checkpoint, tmp_path / "out"), "no config.json for .*/release: looked in")
    (checkpoint / "latest_checkpointed_iteration.txt").write_text("../../model")
    refused(tmp_path, lambda: back(checkpoint, tmp_path / "out"), "says '../../model'")


def test_megatron_lm_iterations_are_found(model: Path, checkpoint: Path, tmp_path: Path) -> None:
    (checkpoint / "release").rename(checkpoint / "iter_0000120")
    (checkpoint / "latest_checkpointed_iteration.txt").write_text("120\n")
    back(checkpoint, tmp_path / "out")
    back(checkpoint / "iter_0000120", tmp_path / "out")
