"""How many parameters a learner rank holds: counted from the model's own rows, not estimated.

Invariants:
- counted_exactly: a rank's count is that of the model that megatron-core builds (padded vocabulary, copy of a tied
  embedding on a last stage of its own, whole norms on every tensor-parallel rank).
- never_more_by_a_finer_cut: more tensor or pipeline stages never raise the largest rank's count (but for the copy of a
  tied embedding, which exists from pp=2 on).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from math import prod

from siri_megatron.config import LearnerConfig
from siri_megatron.learner.architecture import Architecture
from siri_megatron.learner.families import EMBEDDING, HEAD
from siri_megatron.weights.names import Entry, stage_entries, tied_head, virtual_stage

VOCABULARY = (EMBEDDING.parameter, HEAD.parameter)


@dataclass(frozen=True)
class Held:
    """Parameters of a rank."""

    total: int
    largest: int
    """Of its largest one."""


def held_parameters(arch: Architecture, layout: LearnerConfig) -> tuple[Held, ...]:
    """Of a rank of each pipeline stage; every tensor-parallel rank of a stage holds as many."""
    return _held(arch, LearnerConfig(tp=layout.tp, pp=layout.pp, vpp=layout.vpp))


@lru_cache(maxsize=256)
def _held(arch: Architecture, layout: LearnerConfig) -> tuple[Held, ...]:
    counts = ([local_size(entry, arch, layout.tp) for entry in rank_entries(arch, layout, rank)]
              for rank in range(layout.pp))
    return tuple(Held(sum(sizes), max(sizes)) for sizes in counts)


def rank_entries(arch: Architecture, layout: LearnerConfig, rank: int) -> Iterator[Entry]:
    """The parameters of a pipeline rank, over all its model chunks."""
    stages = layout.pp * layout.vpp
    for chunk in range(layout.vpp):
        stage = virtual_stage(chunk, rank, layout.pp)
        yield from stage_entries(arch, stage, stages)
        yield from tied_head(arch, stage, stages)


def local_size(entry: Entry, arch: Architecture, tp: int) -> int:
    """Elements of a tensor-parallel rank's shard of a parameter."""
    if entry.parameter in VOCABULARY:
        return arch.padded_vocab(tp) // tp * arch.hidden
    return sum(prod(part.shape) for part in entry.parts) // (1 if entry.split is None else tp)


@lru_cache(maxsize=64)
def model_parameters(arch: Architecture) -> int:
    """Of the whole model, without padding."""
    return sum(prod(part.shape) for entry in stage_entries(arch, 0, 1) for part in entry.parts)
