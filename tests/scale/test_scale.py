"""Models and layouts of clusters, whole: every rank is built from its config, on the meta device, with no memory.

megatron-core builds its real GPTModel for each rank; transformers, on the meta device too, says what the model's
tensors are. Held here, for every rank:

- owned: the rank's parameters are those that the name map says, in these shapes, cut along these dimensions.
- exported_once: joined over all ranks they give each tensor of the model once, whole, in the map's order.
- filled: the slices that a rank reads of each tensor fill its parameters, and together they are the whole tensor.

Guards against converters and exports that lose or double tensors, as in verl#2024 (expert names wrong, output file too
small), Megatron-Bridge PR#957 (tied embeddings with PP > 2).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from math import prod
from typing import Any

import pytest
import torch
from large_models import CASES, Built, Case, build_every_rank

from siri_megatron.learner.architecture import Architecture
from siri_megatron.learner.runtime import megatron_runtime
from siri_megatron.weights.names import Entry, stage_entries, tensors, tied_head
from siri_megatron.weights.shards import join, local_shape, local_slices, merge

Shape = tuple[int, ...]
SOAK = "70b-tp8-pp8-dp2"
"""128 ranks: half a minute. Its model, and replicas, are in other cases too."""


@pytest.fixture(scope="module", params=[
    pytest.param(name, marks=pytest.mark.soak if name == SOAK else ()) for name in CASES])
def built(request: pytest.FixtureRequest) -> tuple[Case, list[Built]]:
    case = CASES[request.param]
    with megatron_runtime():
        return case, build_every_rank(case)


def entries_of(case: Case, rank: Built) -> list[list[Entry]]:
    """The entries of each of the rank's chunks."""
    arch, pp = Architecture.of(case.config), case.layout.pp
    stages = pp * len(rank.chunks)
    return [stage_entries(arch, stage, stages) + tied_head(arch, stage, stages)
            for stage in (number * pp + rank.pp for number in range(len(rank.chunks)))]


def reference_shapes(case: Case) -> dict[str, Shape]:
    """What transformers makes of the same config."""
    from transformers import AutoConfig, AutoModelForCausalLM
    config = AutoConfig.for_model(**case.config)
    with torch.device("meta"):
        state = AutoModelForCausalLM.from_config(config).state_dict()
    return {name: tuple(value.shape) for name, value in state.items()
            if not (case.config["tie_word_embeddings"] and name == "lm_head.weight")}


def faults_of(entries: list[Entry], parameters: dict[str, Any], arch: Architecture, tp: int) -> list[str]:
    """Where a chunk differs from what the map says: names, shapes, and megatron-core's own marks of the cut."""
    wanted = Counter(entry.parameter for entry in entries)
    faults = [f"{name} x {count}" for name, count in wanted.items() if count > 1]
    faults += [f"{name} is in {'the map' if name in wanted else 'the model'} only"
               for name in wanted.keys() ^ parameters.keys()]
    for entry in entries:
        parameter = parameters.get(entry.parameter)
        if parameter is None:
            continue
        if tuple(parameter.shape) != local_shape(entry, arch, tp):
            faults.append(f"{entry.parameter} is {tuple(parameter.shape)}, the map says {local_shape(entry, arch, tp)}")
        cut = parameter.partition_dim if getattr(parameter, "tensor_model_parallel", False) else None
        if cut != entry.split:
            faults.append(f"{entry.parameter} is cut along {cut}, the map says {entry.split}")
    return faults


def test_owned(built: tuple[Case, list[Built]]) -> None:
    case, ranks = built
    arch = Architecture.of(case.config)
    places = [(rank.dp, rank.pp, rank.tp) for rank in ranks]
    layout = case.layout
    assert sorted(places) == [(dp, pp, tp) for dp in range(layout.dp) for pp in range(layout.pp)
                              for tp in range(layout.tp)]
    for rank in ranks:
        for entries, chunk in zip(entries_of(case, rank), rank.chunks, strict=True):
            assert faults_of(entries, chunk, arch, layout.tp) == []
            assert all(parameter.is_meta for parameter in chunk.values())
            assert {parameter.dtype for parameter in chunk.values()} == {torch.bfloat16}


def test_replicas_are_equal(built: tuple[Case, list[Built]]) -> None:
    case, ranks = built
    seen: dict[tuple[int, int], list[dict[str, Shape]]] = {}
    for rank in ranks:
        shapes = [{name: tuple(parameter.shape) for name, parameter in chunk.items()} for chunk in rank.chunks]
        assert seen.setdefault((rank.tp, rank.pp), shapes) == shapes
    assert len(seen) * case.layout.dp == len(ranks)


def joined(case: Case, ranks: list[Built]) -> Iterator[tuple[str, Shape]]:
    """The shards of all ranks of the first replica, put together: (name, shape) of every tensor."""
    arch, pp = Architecture.of(case.config), case.layout.pp
    chunks = len(ranks[0].chunks)
    at = {(rank.tp, rank.pp): rank for rank in ranks if rank.dp == 0}
    for stage in range(pp * chunks):
        number, owner = divmod(stage, pp)
        for entry in stage_entries(arch, stage, pp * chunks):
            shards = [at[tp, owner].chunks[number][entry.parameter] for tp in range(case.layout.tp)]
            yield from ((name, tuple(tensor.shape)) for name, tensor in join(entry, shards, arch))


def test_exported_once(built: tuple[Case, list[Built]]) -> None:
    """The real export, on each pipeline stage, and the shards joined by hand: transformers' tensors, once each."""
    case, ranks = built
    wanted = reference_shapes(case)
    order = [part.name for part in tensors(Architecture.of(case.config))]
    lists = [list(joined(case, ranks)), *(rank.exported for rank in ranks if rank.exported)]
    assert len(lists) == 1 + case.layout.pp
    for found in lists:
        assert [name for name, _ in found] == order
        assert dict(found) == wanted
        assert len(found) == len(wanted)


def test_every_parameter_is_counted(built: tuple[Case, list[Built]]) -> None:
    """The model card's number: cut parameters summed over ranks, whole ones once, without the padded vocabulary."""
    case, ranks = built
    tied, pp = case.config["tie_word_embeddings"], case.layout.pp
    total = 0
    for rank in (rank for rank in ranks if rank.dp == 0):
        for chunk in rank.chunks:
            total += sum(parameter.numel() for name, parameter in chunk.items()
                         if (getattr(parameter, "tensor_model_parallel", False) or rank.tp == 0)
                         and not (tied and pp > 1 and name == "output_layer.weight"))
    arch = Architecture.of(case.config)
    padding = (arch.padded_vocab(case.layout.tp) - arch.vocab) * arch.hidden * (1 if tied else 2)
    assert total - padding == case.parameters == sum(map(prod, reference_shapes(case).values()))


def test_filled(built: tuple[Case, list[Built]]) -> None:
    """What each rank reads of a tensor has the size of its parameter; the reads of all ranks tile the tensor."""
    case, _ = built
    arch, tp = Architecture.of(case.config), case.layout.tp
    for entry in stage_entries(arch, 0, 1):
        full = [torch.empty(part.shape, device="meta") for part in entry.parts]
        reads = [[local_slices(entry, part, arch, rank, tp) for part in entry.parts] for rank in range(tp)]
        for slices in reads:
            pieces = [tensor[cut] for tensor, cut in zip(full, slices, strict=True)]
            assert tuple(merge(entry, pieces, arch, tp).shape) == local_shape(entry, arch, tp)
        for number, part in enumerate(entry.parts if entry.split is not None else ()):
            cuts = [slices[number][entry.split] for slices in reads]
            assert [cut.start for cut in cuts] == [0, *(cut.stop for cut in cuts[:-1])]
            assert cuts[-1].stop == part.shape[entry.split]


@pytest.mark.parametrize("fault", ["dropped", "doubled", "moved", "uncut", "short"])
def test_a_fault_in_the_map_would_be_noticed(built: tuple[Case, list[Built]], fault: str) -> None:
    """Negative control: the map of some middle rank is changed in one entry."""
    case, ranks = built
    arch, rank = Architecture.of(case.config), ranks[case.layout.tp + 1]
    entries = entries_of(case, rank)[0]
    number = next(index for index, entry in enumerate(entries) if entry.merge == "gate_up")
    entry = entries[number]
    shape = entry.parts[0].shape
    changed = {
        "dropped": [], "doubled": [entry, entry],
        "moved": [replace(entry, parameter=entry.parameter.replace("linear_fc1", "linear_fc3"))],
        "uncut": [replace(entry, split=None)],
        "short": [replace(entry, parts=(replace(entry.parts[0], shape=(shape[0] - 8, shape[1])), *entry.parts[1:]))],
    }[fault]
    assert faults_of(entries, rank.chunks[0], arch, case.layout.tp) == []
    assert faults_of(entries[:number] + changed + entries[number + 1:], rank.chunks[0], arch, case.layout.tp)


def test_a_rank_in_the_wrong_place_would_be_noticed(built: tuple[Case, list[Built]]) -> None:
    """Negative control: the second stage holds what the first should, so the embedding comes twice."""
    case, ranks = built
    arch, second = Architecture.of(case.config), ranks[case.layout.tp * case.layout.dp]
    assert second.pp == 1
    assert faults_of(entries_of(case, second)[0], ranks[0].chunks[0], arch, case.layout.tp)


def test_a_lost_export_would_be_noticed(built: tuple[Case, list[Built]]) -> None:
    """Negative control: an export without its last tensor is not the model."""
    case, ranks = built
    assert ranks[0].exported[:-1] != list(joined(case, ranks)) == ranks[0].exported
