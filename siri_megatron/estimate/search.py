"""What would fit where a run does not, and how the GPUs are best shared out. Pure.

Invariants:
- proposal_fits: what is proposed breaks no rule of `learner.layout` and has no misfit.
- nearest_first: with as many learners if that can be, then with twice or half as many, and so on; among equals the
  layout with the fewest doublings between it and the wanted one.
- split_fits: the split keeps tp, pp and cp, and takes no more GPUs than there are.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import product

from siri_megatron.batching.lengths import round_up, row_quantum
from siri_megatron.config import LearnerConfig, RunConfig
from siri_megatron.estimate.room import cache_suffices, learner_fits, misfits
from siri_megatron.estimate.setup import Setup
from siri_megatron.estimate.step import at_cap
from siri_megatron.learner.layout import candidates, distance, faults
from siri_megatron.rollout.engine_layout import engine_faults

LARGEST_ENGINE = 8
"""Tensor-parallel ranks of an engine that are tried: a node's GPUs."""


@dataclass(frozen=True)
class Split:
    """GPUs shared out between learners and engines."""

    overrides: tuple[str, ...]
    step_s: float
    """At the cap that was asked about."""
    cap: int


def proposal(setup: Setup) -> Setup | None:
    """The nearest run that fits; None if none does."""
    return next((found for engines in _engines(setup) for found in _learners(engines)), None)


def best_split(setup: Setup, cap: int) -> Split | None:
    """The fastest way to share out the machine's GPUs with these tp, pp and cp; None where nothing fits."""
    splits = [(at_cap(candidate, cap).step_s, candidate) for candidate in _splits(setup) if not any(misfits(candidate))]
    if not splits:
        return None
    seconds, best = min(splits, key=lambda split: split[0])
    return Split(tuple(changes(best.config, setup.config)), seconds, cap)


def changes(config: RunConfig, wanted: RunConfig) -> Iterator[str]:
    """What differs, as overrides."""
    for section in ("learner", "engines", "batching"):
        now, before = getattr(config, section), getattr(wanted, section)
        for key in type(now).model_fields:
            if (value := getattr(now, key)) != getattr(before, key):
                yield f"{section}.{key}={_text(value)}"


def _text(value: object) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return "[" + ",".join(str(item) for item in value) + "]" if isinstance(value, tuple) else str(value)


def _engines(setup: Setup) -> Iterator[Setup]:
    """With engines of as many GPUs, then of twice as many, and so on, as far as their caches suffice."""
    wanted, size = setup.engine_gpus, setup.engine_gpus
    while size <= LARGEST_ENGINE and not any(engine_faults(setup.arch, size)):
        count = max(1, setup.config.engines.count * wanted // size)
        engines = setup.config.engines.model_copy(update={
            "count": count, "tp": size})
        if cache_suffices(sized := _with(setup, engines=engines)):
            yield sized
        size *= 2


def _learners(setup: Setup) -> Iterator[Setup]:
    """With layouts of as many learners, nearest first; then of others as many as the GPUs allow."""
    limit = setup.machine.limit
    doublings = range(-10, 11)
    worlds = {setup.learners * 2**power if power >= 0 else setup.learners // 2**-power for power in doublings}
    for world in sorted(worlds, key=lambda world: abs(math.log2(max(world, 1) / setup.learners))):
        if 0 < world <= limit - setup.engine_gpus:
            count = int(min(setup.config.engines.count, (limit - world) // setup.engine_gpus))
            sized = _with(setup, engines=setup.config.engines.model_copy(update={"count": count}))
            yield from (found for found in _layouts(sized, world) if learner_fits(found))


def _layouts(setup: Setup, world: int) -> Iterator[Setup]:
    """Runs with so many learners that break no rule, nearest first."""
    wanted, batching = setup.config.learner, setup.config.batching
    longest = round_up(setup.config.data.max_prompt_tokens + setup.config.budget.l_max, row_quantum(wanted.cp))
    sizes = sorted({batching.tokens_per_micro_batch, min(batching.tokens_per_micro_batch, longest)}, reverse=True)
    found: list[tuple[float, int, LearnerConfig, int]] = []
    for layout, tokens in product(_variants(setup, world), sizes):
        shorter = math.log2(batching.tokens_per_micro_batch / tokens)
        found.append((_far(layout, wanted) + shorter, len(found), layout, tokens))
    for _, _, layout, tokens in sorted(found, key=lambda item: item[:2]):
        yield _with(setup, learner=layout, batching=batching.model_copy(update={"tokens_per_micro_batch": tokens}))


def _variants(setup: Setup, world: int) -> Iterator[LearnerConfig]:
    """Layouts of so many learners that break no rule, tensor and context parallelism within a node."""
    wanted = setup.config.learner
    sizes = {wanted.cp, 2 * wanted.cp} if setup.spec == "te" else {wanted.cp}
    bases = [wanted.model_copy(update={"tp": 1, "pp": 1, "cp": cp, "dp": world // cp, "sequence_parallel": True})
             for cp in sorted(sizes) if world % cp == 0]
    for layout in dict.fromkeys(layout for base in bases for layout in candidates(setup.arch, base)):
        if layout.tp * layout.cp > setup.machine.gpus_per_node or layout.vpp not in (1, wanted.vpp):
            continue
        if any(faults(setup.arch, layout)):
            continue
        for recompute, split in product(dict.fromkeys((wanted.recompute, "full")),
                                        dict.fromkeys((wanted.distributed_optimizer, True))):
            yield layout.model_copy(update={"recompute": recompute, "distributed_optimizer": split})


def _far(layout: LearnerConfig, wanted: LearnerConfig) -> float:
    """As `learner.layout.distance`, and half a doubling for each further switch."""
    switches = ("recompute", "distributed_optimizer")
    return distance(layout, wanted) + sum(getattr(layout, key) != getattr(wanted, key) for key in switches) / 2


def _splits(setup: Setup) -> Iterator[Setup]:
    """Every power of two (and the wanted number) of replicas, and the engines that then have room."""
    layout, gpus = setup.config.learner, setup.devices
    replica = layout.world_size // layout.dp
    for dp in sorted({layout.dp, *(2**power for power in range(10))}):
        if (count := (gpus - dp * replica) // setup.engine_gpus) >= 1:
            yield _with(setup, learner=layout.model_copy(update={"dp": dp}),
                        engines=setup.config.engines.model_copy(update={"count": count}))


def _with(setup: Setup, **sections: object) -> Setup:
    return replace(setup, config=setup.config.model_copy(update=sections))
