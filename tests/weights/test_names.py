"""The name map against the tensors that transformers makes, and its parts against each other."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from models import Kind, make_model

from siri_megatron.learner.architecture import Architecture
from siri_megatron.learner.rope import Rope
from siri_megatron.weights.names import Entry, stage_entries, tensors, tied_head, virtual_stage
from siri_megatron.weights.shards import join, local_shape, local_slices, merge

KINDS: tuple[Kind, ...] = ("qwen2_tied", "qwen2", "qwen3", "qwen3_tied", "llama", "llama_tied")


def described(kind: Kind) -> tuple[Architecture, dict[str, torch.Tensor]]:
    """A model of four layers: what its config says, and its tensors (a tied head is no tensor of its own)."""
    model = make_model(kind, num_hidden_layers=4)
    arch = Architecture.of(model.config.to_dict())
    state = {name: value for name, value in model.state_dict().items()
             if not (arch.tied and name == "lm_head.weight")}
    return arch, state


@pytest.mark.parametrize("kind", KINDS)
def test_names_and_shapes_are_those_of_transformers(kind: Kind) -> None:
    arch, state = described(kind)
    shapes = {name: tuple(value.shape) for name, value in state.items()}
    assert {part.name: part.shape for part in tensors(arch)} == shapes


@pytest.mark.parametrize("stages", [1, 2, 4])
@pytest.mark.parametrize("kind", KINDS)
def test_every_tensor_once(kind: Kind, stages: int) -> None:
    arch, _ = described(kind)
    staged = [part for stage in range(stages) for entry in stage_entries(arch, stage, stages) for part in entry.parts]
    assert staged == tensors(arch)
    assert len({part.name for part in staged}) == len(staged)


@pytest.mark.parametrize(("pp", "chunks", "layers"), [(2, 2, {0: [0, 2], 1: [1, 3]}), (2, 1, {0: [0, 1], 1: [2, 3]}),
                                                      (4, 1, {3: [3]}), (1, 1, {0: [0, 1, 2, 3]})])
def test_layers_are_dealt_in_turn(pp: int, chunks: int, layers: dict[int, list[int]]) -> None:
    """Four layers on the ranks of a pipeline, as megatron's get_transformer_layer_offset has it."""
    arch, _ = described("qwen3")
    for rank, wanted in layers.items():
        entries = [entry for chunk in range(chunks)
                   for entry in stage_entries(arch, virtual_stage(chunk, rank, pp), pp * chunks)]
        found = [int(entry.parts[0].name.split(".")[2]) for entry in entries if "linear_fc2" in entry.parameter]
        assert found == wanted


def test_tied_has_no_head() -> None:
    tied, untied = described("qwen2_tied")[0], described("qwen2")[0]
    assert "lm_head.weight" not in [part.name for part in tensors(tied)]
    assert [entry.parameter for entry in tied_head(tied, 1, 2)] == ["output_layer.weight"]
    assert tied_head(tied, 0, 1) == tied_head(tied, 0, 2) == tied_head(untied, 1, 2) == []


def shard(entry: Entry, state: dict[str, torch.Tensor], arch: Architecture, rank: int, tp: int) -> torch.Tensor:
    return merge(entry, [state[part.name][local_slices(entry, part, arch, rank, tp)] for part in entry.parts], arch, tp)


@pytest.mark.parametrize("tp", [1, 2])
@pytest.mark.parametrize("kind", KINDS)
def test_round_trip(kind: Kind, tp: int) -> None:
    arch, state = described(kind)
    joined: dict[str, torch.Tensor] = {}
    for entry in stage_entries(arch, 0, 1):
        shards = [shard(entry, state, arch, rank, tp) for rank in range(tp)]
        assert {tuple(one.shape) for one in shards} == {local_shape(entry, arch, tp)}
        joined |= join(entry, shards, arch)
    assert joined.keys() == state.keys()
    assert all(torch.equal(joined[name], state[name]) for name in state)


def test_padding_is_zero() -> None:
    arch, state = described("qwen2_tied")
    embedding = stage_entries(arch, 0, 1)[0]
    last = shard(embedding, state, arch, 1, 2)
    assert arch.vocab == 37
    assert last.shape[0] == 19
    assert torch.equal(last[:18], state["model.embed_tokens.weight"][19:])
    assert last[18:].abs().sum() == 0


@settings(max_examples=30)
@given(groups=st.integers(1, 4), per_group=st.integers(1, 3), dim=st.integers(1, 3))
def test_qkv_goes_group_by_group(groups: int, per_group: int, dim: int) -> None:
    """Megatron's layout: the query heads of a group, its key head, its value head; then the next group."""
    arch = Architecture("llama", 1, 5, groups * per_group, groups, dim, 8, 11, 64, 1e-6, Rope(), False)
    entry = next(entry for entry in stage_entries(arch, 0, 1) if entry.merge == "qkv")
    state = {part.name: torch.full(part.shape, 0.0) for part in entry.parts}
    for code, part in enumerate(entry.parts):  # each row says which tensor and which head it is
        heads = torch.arange(part.shape[0]) // dim
        state[part.name] += (100 * code + heads)[:, None]
    merged = shard(entry, state, arch, 0, 1)[::dim, 0].tolist()
    wanted = []
    for group in range(groups):
        wanted += [group * per_group + head for head in range(per_group)] + [100 + group, 200 + group]
    assert merged == wanted
