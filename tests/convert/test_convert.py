"""HF -> Megatron -> (another layout) -> HF gives the same bits; what surrounds the weights comes along."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from conversions import back, bits_equal, loaded, quiet, there
from models import write_model
from safetensors.torch import load_file, save_file

from siri_megatron.convert.convert import Options, reshard
from siri_megatron.convert.metadata import read_contents
from siri_megatron.data.digit_tokenizer import write_tokenizer

LAYOUTS = ((1, 1), (2, 1), (4, 1), (1, 2), (2, 2), (1, 4))
SIZES = {"num_hidden_layers": 4, "num_key_value_heads": 4}


def in_dtype(path: Path, dtype: torch.dtype) -> Path:
    """Store the weights of a model directory in another type."""
    state = {name: tensor.to(dtype) for name, tensor in load_file(path / "model.safetensors").items()}
    save_file(state, path / "model.safetensors", metadata={"format": "pt"})
    return path


@pytest.mark.parametrize(("kind", "dtype"), [
    ("qwen2_tied", torch.float32), ("qwen2", torch.bfloat16), ("qwen3_tied", torch.bfloat16), ("qwen3", torch.float32),
    ("llama", torch.float16)], ids=str)
def test_round_trip(tmp_path: Path, kind: Any, dtype: torch.dtype) -> None:
    """Every layout, and from each to its mirror image on the way back. (Types change only when asked.)"""
    model = in_dtype(write_model(tmp_path / "model", kind, **SIZES), dtype)
    original = loaded(model)
    for tp, pp in LAYOUTS:
        there(model, tmp_path / "megatron", tp=tp, pp=pp)
        reshard(tmp_path / "megatron", tmp_path / "other", tp=pp, pp=tp, hf=None, options=Options(force=True),
                progress=quiet)
        for checkpoint in ("megatron", "other"):
            back(tmp_path / checkpoint, tmp_path / "again")
            assert bits_equal(loaded(tmp_path / "again"), original), (tp, pp, checkpoint)


def test_negative_control(tmp_path: Path) -> None:
    """One changed bit is not the same."""
    model = write_model(tmp_path / "model", "qwen2")
    original, changed = loaded(model), loaded(model)
    changed["model.norm.weight"].view(torch.int32)[3] ^= 1
    assert bits_equal(original, loaded(model))
    assert not bits_equal(original, changed)


@pytest.mark.parametrize("vocab", [5, 37, 130])
@pytest.mark.parametrize("kind", ["qwen2", "qwen2_tied"])
def test_padding_trimmed(tmp_path: Path, kind: Any, vocab: int) -> None:
    """Megatron-Bridge#625: rows that pad the vocabulary must not come out. 5 over 4 ranks: one has no other."""
    model = write_model(tmp_path / "model", kind, vocab_size=vocab, num_key_value_heads=4, pad_token_id=None,
                        bos_token_id=1, eos_token_id=2)
    there(model, tmp_path / "megatron", tp=4)
    stored = read_contents(tmp_path / "megatron" / "release").tensors["embedding.word_embeddings.weight"]
    assert stored.size[0] == -(-vocab // 4) * 4 > vocab
    back(tmp_path / "megatron", tmp_path / "again")
    assert loaded(tmp_path / "again")["model.embed_tokens.weight"].shape[0] == vocab
    assert bits_equal(loaded(tmp_path / "again"), loaded(model))


def test_tied_embedding_is_stored_once(tmp_path: Path) -> None:
    """Megatron-Bridge PR#957 (tied embeddings with several stages), PR#4883 (head found by a hard-coded name)."""
    model = write_model(tmp_path / "model", "qwen2_tied", num_hidden_layers=4)
    there(model, tmp_path / "megatron", tp=2, pp=4)
    assert "output_layer.weight" not in read_contents(tmp_path / "megatron" / "release").tensors
    back(tmp_path / "megatron", tmp_path / "again")
    assert "lm_head.weight" not in loaded(tmp_path / "again")


def test_a_stored_copy_of_a_tied_head_is_left_out(tmp_path: Path) -> None:
    model = write_model(tmp_path / "model", "qwen2_tied")
    state = loaded(model)
    save_file(state | {"lm_head.weight": state["model.embed_tokens.weight"].clone()}, model / "model.safetensors")
    there(model, tmp_path / "megatron", tp=2)
    back(tmp_path / "megatron", tmp_path / "again")
    assert bits_equal(loaded(tmp_path / "again"), state)


def test_type_changes_when_asked(tmp_path: Path) -> None:
    model = write_model(tmp_path / "model", "qwen3")
    there(model, tmp_path / "megatron", tp=2, dtype=torch.bfloat16, verify=True)
    back(tmp_path / "megatron", tmp_path / "again", verify=True)
    rounded = {name: tensor.bfloat16() for name, tensor in loaded(model).items()}
    assert bits_equal(loaded(tmp_path / "again"), rounded)
    config = json.loads((tmp_path / "again" / "config.json").read_text())
    assert config.get("dtype", config.get("torch_dtype")) == "bfloat16"


def test_companions_come_along(tmp_path: Path) -> None:
    model = write_model(tmp_path / "model", "llama")
    write_tokenizer(model)
    (model / "generation_config.json").write_text('{"eos_token_id": 31}')
    there(model, tmp_path / "megatron", tp=2)
    back(tmp_path / "megatron", tmp_path / "again")
    for name in ("tokenizer.json", "tokenizer_config.json", "generation_config.json"):
        assert (tmp_path / "again" / name).read_bytes() == (model / name).read_bytes()
    configs = [json.loads((path / "config.json").read_text()) for path in (model, tmp_path / "again")]
    assert configs[0] == configs[1]


def test_shards_have_an_index_that_transformers_reads(tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    model = write_model(tmp_path / "model", "qwen2", shards=True)
    there(model, tmp_path / "megatron", pp=2)
    back(tmp_path / "megatron", tmp_path / "again", shard_bytes=20_000)
    files = sorted(path.name for path in (tmp_path / "again").glob("*.safetensors"))
    assert len(files) > 2
    assert files[0] == f"model-00001-of-{len(files):05d}.safetensors"
    assert all((tmp_path / "again" / name).stat().st_size < 24_000 for name in files)
    index = json.loads((tmp_path / "again" / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == sum(tensor.nbytes for tensor in loaded(model).values())
    assert bits_equal(loaded(tmp_path / "again"), loaded(model))
    read = AutoModelForCausalLM.from_pretrained(tmp_path / "again", dtype=torch.float32).state_dict()
    assert all(torch.equal(read[name], tensor) for name, tensor in loaded(model).items())


def test_common_state_has_what_megatron_lm_reads(tmp_path: Path) -> None:
    """Held against a reading of Megatron-LM's training/checkpointing.py; not run there."""
    model = write_model(tmp_path / "model", "qwen2_tied", num_hidden_layers=4)
    there(model, tmp_path / "megatron", tp=2, pp=2)
    assert (tmp_path / "megatron" / "latest_checkpointed_iteration.txt").read_text().strip() == "release"
    common = torch.load(tmp_path / "megatron" / "release" / "common.pt", weights_only=False)
    assert common["checkpoint_version"] >= 3.0
    assert common["iteration"] == 0
    assert not common["content_metadata"]["singleton_local_shards"]
    args = common["args"]
    assert (args.num_layers, args.hidden_size, args.num_attention_heads, args.num_query_groups) == (4, 32, 4, 2)
    assert (args.tensor_model_parallel_size, args.pipeline_model_parallel_size) == (2, 2)
    assert args.swiglu
    assert args.add_qkv_bias
    assert not args.untie_embeddings_and_output_weights
