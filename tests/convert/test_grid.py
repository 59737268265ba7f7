"""The grid of a checkpoint against what real GPTModels say of their own parameters, rank by rank."""

from __future__ import annotations

from collections.abc import Iterator
from operator import add
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from models import Kind, make_model, write_model
from ranks import Rank, Ranks

from siri_megatron.config import LearnerConfig, ModelConfig
from siri_megatron.convert.grid import STATEFUL, rank_chunks, rank_states, slots
from siri_megatron.learner.architecture import Architecture, read_config
from siri_megatron.weights.names import tensors

KINDS: tuple[Kind, ...] = ("qwen2_tied", "qwen2", "qwen3", "qwen3_tied", "llama")  # type: ignore[assignment]
LAYOUTS = ({"tp": 4}, {"tp": 2, "pp": 2}, {"pp": 4}, {"pp": 2, "dp": 2}, {"dp": 4})
SIZES = {"num_hidden_layers": 4, "num_key_value_heads": 4}
Box = tuple[str, tuple[int, ...], tuple[int, ...], tuple[int, ...]]


@pytest.fixture(scope="module")
def ranks() -> Iterator[Ranks]:
    with Ranks(4) as pool:
        yield pool


def sharded(rank: Rank, model_dir: Path, layout: dict[str, int]) -> tuple[list[Box], list[str]]:
    """(key, global shape, offset, shape) of each main replica on this rank, and the keys of its objects."""
    from megatron.core.dist_checkpointing.mapping import ShardedObject, ShardedTensor, apply_factories, is_main_replica

    from siri_megatron.learner.groups import start_groups, stop_groups
    from siri_megatron.learner.model import build_model, transformer_config
    given_layout = LearnerConfig(**layout)
    arch = Architecture.of(read_config(model_dir))
    with rank.control(given_layout) as control:
        start_groups(given_layout, control, 1)
        try:
            config = transformer_config(arch, given_layout, ModelConfig(path=model_dir))
            state: dict[str, Any] = build_model(arch, config, "local", context=64)[0].sharded_state_dict()
            apply_factories(state)
            items = [item for value in state.values() for item in _flat(value) if is_main_replica(item.replica_id)]
        finally:
            stop_groups()
    boxes = [(item.key, item.global_shape, item.global_offset, item.data.shape) for item in items
             if isinstance(item, ShardedTensor)]
    rows = [(key, size, offset, (1,) * (len(size) - len(shape)) + tuple(shape)) for key, size, offset, shape in boxes]
    return rows, [item.unique_key for item in items if isinstance(item, ShardedObject)]


def _flat(value: Any) -> Iterator[Any]:
    """A factory builds a dict or a list of shards."""
    if isinstance(value, dict):
        for item in value.values():
            yield from _flat(item)
    elif isinstance(value, list):
        for item in value:
            yield from _flat(item)
    else:
        yield value


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_as_megatron_cuts(ranks: Ranks, tmp_path: Path, kind: Kind, layout: dict[str, int]) -> None:
    arch = Architecture.of(read_config(write_model(tmp_path, kind, **SIZES)))
    tp, pp = layout.get("tp", 1), layout.get("pp", 1)
    said = ranks.run(sharded, tmp_path, layout)
    wanted = [set(said[rank][0]) for rank in main_ranks(tp, pp, 4)]
    ours = [{(chunk.slot.key, chunk.slot.size(arch, tp), chunk.offset, chunk.shape) for chunk in chunks}
            for chunks in rank_chunks(arch, tp, pp)]
    assert ours == wanted
    assert ours != [set(boxes) for boxes in reversed(wanted)] or len(wanted) == 1  # negative control: ranks matter
    assert not any(boxes for rank, (boxes, _) in enumerate(said) if rank not in main_ranks(tp, pp, 4))
    objects = [set(said[rank][1]) for rank in main_ranks(tp, pp, 4)]
    te_only = "self_attention.core_attention"
    assert [{key for key in keys if te_only not in key} for keys in rank_states(arch, tp, pp)] == objects
    assert te_only in STATEFUL


def main_ranks(tp: int, pp: int, world: int) -> list[int]:
    """Ranks of the first data-parallel replica: tensor-parallel rank fastest, then data-parallel, then stage."""
    dp = world // tp // pp
    return [stage * tp * dp + rank for stage in range(pp) for rank in range(tp)]


@given(st.sampled_from(KINDS), st.sampled_from([(1, 1), (2, 1), (4, 1), (1, 2), (2, 4), (4, 4)]), st.integers(5, 300))
def test_whole_cover(kind: Kind, layout: tuple[int, int], vocab: int) -> None:
    """Painted chunk by chunk, every tensor with its padding has one coat."""
    family = kind.removesuffix("_tied")
    arch = Architecture.of({
        "model_type": family, "hidden_act": "silu", "num_hidden_layers": 4, "hidden_size": 32, "num_attention_heads": 8,
        "num_key_value_heads": 4, "intermediate_size": 48, "vocab_size": vocab, "max_position_embeddings": 64,
        "tie_word_embeddings": kind.endswith("_tied")})
    chunks = [chunk for owned in rank_chunks(arch, *layout) for chunk in owned]
    coats = {slot.key: np.zeros(slot.size(arch, layout[0]), int) for slot in slots(arch)}
    for chunk in chunks:
        box = coats[chunk.slot.key][tuple(map(slice, chunk.offset, map(add, chunk.offset, chunk.shape)))]
        assert box.shape == chunk.shape
        box += 1
    assert all((coat == 1).all() for coat in coats.values())


def test_every_tensor_has_one_slot() -> None:
    arch = Architecture.of(make_model("qwen3").config.to_dict())
    assert [part for slot in slots(arch) for part in slot.entry.parts] == tensors(arch)
