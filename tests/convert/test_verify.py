"""Verification says yes to the same model, and names what differs between two: config, tensor, bit, logits."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from conversions import loaded, quiet, there
from models import write_model
from safetensors.torch import save_file

from siri_megatron.convert.convert import Options, hf_to_megatron, verify
from siri_megatron.convert.hf import HfWeights
from siri_megatron.convert.logits import compare_logits, difference
from siri_megatron.convert.megatron import MegatronWeights
from siri_megatron.convert.verify import PROMPTS, Different, bits, encode
from siri_megatron.data.digit_tokenizer import write_tokenizer
from siri_megatron.errors import ModelError

NAME = "model.layers.1.self_attn.k_proj.weight"
ROWS = [[1, 2, 3, 4, 5], [7, 8, 9], [30]]


def pair(tmp_path: Path, kind: Any = "qwen2", **layout: int) -> tuple[Path, Path]:
    model = write_model(tmp_path / "model", kind, num_key_value_heads=4, eos_token_id=31)
    write_tokenizer(model)
    return model, there(model, tmp_path / "megatron", **layout)


def not_called(what: str, _total: int) -> Any:
    raise AssertionError(what)


def rewrite(model: Path, name: str, index: int, bit: int) -> None:
    state = loaded(model)
    state[name].view(torch.int32).view(-1)[index] ^= bit
    save_file(state, model / "model.safetensors", metadata={"format": "pt"})


def set_field(directory: Path, **fields: Any) -> None:
    config = json.loads((directory / "config.json").read_text())
    (directory / "config.json").write_text(json.dumps(config | fields))


@pytest.mark.parametrize(("kind", "layout"), [("qwen2_tied", {"tp": 4}), ("qwen3", {"tp": 2, "pp": 2}),
                                              ("llama", {"pp": 2})])
def test_the_same_model(tmp_path: Path, kind: Any, layout: dict[str, int]) -> None:
    model, checkpoint = pair(tmp_path, kind, **layout)
    found = verify(HfWeights.open(model), MegatronWeights.open(checkpoint), prompts=PROMPTS, progress=quiet)
    state = loaded(model)
    assert found.tensors.tensors == len(state)
    assert found.tensors.parameters == sum(tensor.numel() for tensor in state.values())
    assert found.logits is not None
    assert found.logits.largest < 1e-5
    assert found.logits.same_argmax == 1.0


def test_one_bit(tmp_path: Path) -> None:
    model, checkpoint = pair(tmp_path, tp=2)
    rewrite(model, NAME, 100, 1)
    with pytest.raises(Different, match=rf"{NAME} differs .* in 1 of 1024 values, first at \[3, 4\]"):
        verify(HfWeights.open(model), MegatronWeights.open(checkpoint), prompts=(), progress=quiet)


def test_bits_tell_zeros_apart() -> None:
    zeros = torch.tensor([0.0, -0.0])
    assert torch.equal(zeros[:1], zeros[1:])
    assert not torch.equal(bits(zeros[:1]), bits(zeros[1:]))


@pytest.mark.parametrize(("fields", "says"), [
    ({"rms_norm_eps": 1e-5}, "norm_eps: 1e-05 and 1e-06"),
    ({"rope_parameters": {"rope_type": "default", "rope_theta": 5e5}}, "rope.base: 500000.0 and 10000.0"),
    ({"max_position_embeddings": 64}, "max_positions: 64 and 16384"),
    ({"eos_token_id": 7}, "eos_token_id: 7 and 31"),
    ({"eos_token_id": 7, "rms_norm_eps": 1e-5}, "norm_eps: 1e-05 and 1e-06; eos_token_id"),
])
def test_configs_are_compared(tmp_path: Path, fields: dict[str, Any], says: str) -> None:
    """slime#1059: a converter that does not compare configs; no tensor shows these."""
    model, checkpoint = pair(tmp_path)
    set_field(model, **fields)
    with pytest.raises(Different, match=says):
        verify(HfWeights.open(model), MegatronWeights.open(checkpoint), prompts=(), progress=quiet)


@pytest.mark.parametrize("fields", [{"rms_norm_eps": 1e-2},
                                    {"rope_parameters": {"rope_type": "default", "rope_theta": 5e5}}])
def test_logits_see_what_no_tensor_shows(tmp_path: Path, fields: dict[str, Any]) -> None:
    """The same bits on both sides, and still another model."""
    model, checkpoint = pair(tmp_path)
    compare_logits(HfWeights.open(model), MegatronWeights.open(checkpoint), ROWS)
    set_field(model, **fields)
    with pytest.raises(Different, match=r"logits of .* differ by"):
        compare_logits(HfWeights.open(model), MegatronWeights.open(checkpoint), ROWS)


def test_logits_see_swapped_tensors(tmp_path: Path) -> None:
    model, checkpoint = pair(tmp_path, "qwen3", tp=2)
    state = loaded(model)
    up, gate = "model.layers.0.mlp.up_proj.weight", "model.layers.0.mlp.gate_proj.weight"
    save_file(state | {up: state[gate], gate: state[up]}, model / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(Different, match="logits"):
        compare_logits(HfWeights.open(model), MegatronWeights.open(checkpoint), ROWS)


def test_a_changed_type_is_told(tmp_path: Path) -> None:
    model, _ = pair(tmp_path)
    there(model, tmp_path / "rounded", dtype=torch.bfloat16)
    one, other = HfWeights.open(model), MegatronWeights.open(tmp_path / "rounded")
    with pytest.raises(Different, match=r"is in float32, .* in bfloat16"):
        verify(one, other, prompts=(), progress=quiet)
    found = verify(one, other, prompts=PROMPTS, as_dtype=torch.bfloat16, progress=quiet)
    assert found.logits is not None
    assert found.logits.largest < 1e-5


def test_a_wrong_result_never_appears(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A conversion with --verify whose writer has a bug."""
    model = write_model(tmp_path / "model", "qwen2")
    plain = HfWeights.chunk

    def wrong(self: HfWeights, chunk: Any) -> torch.Tensor:
        value = plain(self, chunk).clone()
        if "linear_proj" in chunk.slot.key:
            value = value.flip(-1)
        return value

    monkeypatch.setattr(HfWeights, "chunk", wrong)
    with pytest.raises(Different, match=r"o_proj.weight differs"):
        hf_to_megatron(model, tmp_path / "out", tp=1, pp=1, options=Options(verify=True), progress=quiet)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model"]


def test_prompts_need_a_tokenizer_that_knows_them(tmp_path: Path) -> None:
    model = write_model(tmp_path / "model", "qwen2")
    with pytest.raises(ModelError, match=r"has no tokenizer.json"):
        hf_to_megatron(model, tmp_path / "out", tp=1, pp=1, options=Options(verify=True, prompts=PROMPTS),
                       progress=quiet)
    checkpoint = there(model, tmp_path.parent / f"{tmp_path.name}-megatron")
    with pytest.raises(ModelError, match=r"has no tokenizer.json"):  # before the long part
        verify(HfWeights.open(model), MegatronWeights.open(checkpoint), prompts=PROMPTS, progress=not_called)
    write_tokenizer(model)
    set_field(model, eos_token_id=31)
    assert len(encode(model, PROMPTS)) == 2  # digits and sums; the tokenizer has no letters beyond its labels
    with pytest.raises(ModelError, match="no tokens for any of the 1 prompts"):
        encode(model, ["Wörter"])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model"]


def test_difference_is_the_largest() -> None:
    one = [torch.tensor([[1.0, 2.0]]), torch.tensor([[4.0, 3.0], [0.0, 1.0]])]
    other = [torch.tensor([[1.0, 2.0]]), torch.tensor([[4.0, 3.5], [2.0, 1.0]])]
    found = difference(one, other)
    assert (found.largest, found.scale, found.prompts) == (2.0, 4.0, 2)
    assert found.same_argmax == pytest.approx(2 / 3)
    assert not found.good
