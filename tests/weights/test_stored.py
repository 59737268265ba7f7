"""Headers of a model directory against its architecture, for every family."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from models import Kind, make_model

from siri_megatron.errors import ModelError
from siri_megatron.learner.architecture import Architecture
from siri_megatron.weights.stored import HEAD, Stored, check_stored

KINDS: tuple[Kind, ...] = ("qwen2_tied", "qwen2", "qwen3", "qwen3_tied", "llama", "llama_tied")
FILE = Path("model.safetensors")


def headers(kind: Kind) -> tuple[Architecture, dict[str, Stored]]:
    """What transformers would store of a model."""
    model = make_model(kind)
    tied = model.config.tie_word_embeddings
    return Architecture.of(model.config.to_dict()), {
        name: Stored(FILE, tuple(value.shape), "F32") for name, value in model.state_dict().items()
        if not (tied and name == HEAD)}


NORM, QUERY = "model.layers.1.input_layernorm.weight", "model.layers.0.self_attn.q_proj.weight"


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("change", "says"), [
    (lambda found: None, None),
    (lambda found: found.pop(NORM), f"lacks 1 tensors: {NORM}"),
    (lambda found: found.update({"model.layers.2.mlp.up_proj.weight": found[QUERY]}),
     "surplus of 1 tensors: model.layers.2.mlp.up_proj.weight"),
    (lambda found: found.update({"model.layers.0.self_attn.o_proj.bias": found[NORM]}), "surplus of 1 tensors: "),
    (lambda found: found.update({QUERY: replace(found[QUERY], shape=(7, 32))}), f"{QUERY} in {FILE} has shape [7, 32]"),
    (lambda found: found.update({NORM: replace(found[NORM], kind="I8")}), f"{NORM} in {FILE} is of type I8"),
])
def test_exactly_these(kind: Kind, change: Callable[[dict[str, Stored]], Any], says: str | None) -> None:
    arch, found = headers(kind)
    change(found)
    if says is None:
        check_stored(found, arch, Path("model"))
        return
    with pytest.raises(ModelError) as caught:
        check_stored(found, arch, Path("model"))
    assert says in caught.value.what


@pytest.mark.parametrize("family", ["qwen2", "qwen3", "llama"])
def test_tied_copy_allowed(family: Kind) -> None:
    arch, untied = headers(family)
    check_stored(untied, replace(arch, tied=True), Path("model"))
    del untied[HEAD]
    with pytest.raises(ModelError, match=f"lacks 1 tensors: {HEAD}"):
        check_stored(untied, arch, Path("model"))


def test_tables_allowed() -> None:
    arch, found = headers("llama")
    table = {"model.layers.0.self_attn.rotary_emb.inv_freq": Stored(FILE, (4,), "F32")}
    check_stored(found | table, arch, Path("model"))
