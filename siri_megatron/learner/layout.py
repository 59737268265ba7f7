"""The launch check: can this model be cut into this layout? Pure, no torch, so `--dry-run` can say it at once.

Invariants:
- refused_with_both_values: every refusal names the model's field and the learner's, the rule, and a layout that works.
- nearest_works: the proposed layout itself passes the check, and has as many learners as the wanted one.
- refused_exactly: a layout is refused if and only if a rule below is broken.
- vocab_never_refused: a vocabulary that TP does not divide is padded inside Megatron (`Architecture.padded_vocab`).

How many micro-batches a layout asks for is no matter of refusal: plans are made in multiples
(`LearnerConfig.micro_batch_multiple`). Nor is context parallelism: it cuts rows, and plans pad them so that it can
(`batching.lengths`). That a micro-batch holds the longest sample is `batching.lengths.capacity_at`'s.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import product
from typing import Any

from siri_megatron.config import LearnerConfig
from siri_megatron.errors import ConfigError
from siri_megatron.learner.architecture import Architecture

SIZES = ("tp", "pp", "dp", "cp", "vpp")


@dataclass(frozen=True)
class Fault:
    """Why a layout cannot be run."""

    what: str
    """Both values."""
    rule: str


def check_layout(model_config: Mapping[str, Any], learner: LearnerConfig, *, context: int) -> Architecture:
    """Check a `config.json` against a layout.

    Args:
        context: longest sequence of the run, tokens (longest prompt + longest response).

    Returns:
        The architecture, for who needs it next.

    Raises:
        ConfigError: an unsupported feature, a layout that the model cannot be cut into, or too long a context.
    """
    arch = Architecture.of(model_config)
    for fault in faults(arch, learner):
        raise ConfigError(fault.what, rule=fault.rule,
                          fix=f"nearest layout that works: {overrides(nearest(arch, learner), learner)}")
    if context > arch.max_positions:
        raise ConfigError(
            f"a sequence may have {context} tokens (data.max_prompt_tokens + the longest response), "
            f"the model's max_position_embeddings={arch.max_positions}", rule="context <= max_position_embeddings",
            fix=f"lower budget.l_max (siri sft: max_response_tokens) by {context - arch.max_positions}, or start from "
                "a model with a longer context")
    return arch


def faults(arch: Architecture, learner: LearnerConfig) -> Iterator[Fault]:
    """Every rule that a layout of this model breaks."""
    yield from _divisions(arch, learner)
    if learner.vpp > 1 and learner.pp == 1:
        yield Fault(f"learner.vpp={learner.vpp}, learner.pp=1", "a virtual pipeline has a pipeline: learner.pp > 1")
    if learner.sequence_parallel:
        yield from _sequence_parallel(learner)
    if learner.overlap and learner.dp * learner.cp == 1:
        yield Fault("learner.overlap=true, learner.dp=1, learner.cp=1",
                    "what is overlapped is the exchange between data- and context-parallel ranks: dp x cp > 1")


def nearest(arch: Architecture, learner: LearnerConfig) -> LearnerConfig:
    """The layout closest to the wanted one that can be run, with as many learners."""
    fitting = (layout for layout in candidates(arch, learner) if not any(faults(arch, layout)))
    return min(fitting, key=lambda layout: distance(layout, learner))


def overrides(layout: LearnerConfig, wanted: LearnerConfig) -> str:
    """A layout as command-line overrides: the three usual sizes, and what else differs from the wanted one."""
    changed = [key for key in ("cp", "vpp", "sequence_parallel", "overlap")
               if getattr(layout, key) != getattr(wanted, key)]
    return " ".join(f"learner.{key}={str(getattr(layout, key)).lower()}" for key in ("tp", "pp", "dp", *changed))


def _divisions(arch: Architecture, learner: LearnerConfig) -> Iterator[Fault]:
    """Sizes of the model that are cut into equal parts."""
    for field, size in (("num_attention_heads", arch.heads), ("num_key_value_heads", arch.groups),
                        ("intermediate_size", arch.ffn)):
        if size % learner.tp:
            yield Fault(f"learner.tp={learner.tp} does not divide the model's {field}={size}",
                        f"{field} % learner.tp == 0")
    if arch.layers % learner.pp:
        yield Fault(f"learner.pp={learner.pp} does not divide the model's num_hidden_layers={arch.layers}",
                    "num_hidden_layers % learner.pp == 0")
    elif arch.layers % (learner.pp * learner.vpp):
        yield Fault(f"learner.pp={learner.pp} x learner.vpp={learner.vpp} does not divide the model's "
                    f"num_hidden_layers={arch.layers}", "num_hidden_layers % (learner.pp x learner.vpp) == 0")


def _sequence_parallel(learner: LearnerConfig) -> Iterator[Fault]:
    from siri_megatron.batching.lengths import QUANTUM  # numpy: not before something needs it

    if learner.tp == 1:
        yield Fault("learner.sequence_parallel=true, learner.tp=1",
                    "sequence parallelism cuts over the tensor-parallel ranks: learner.tp > 1")
    if QUANTUM % learner.tp:
        yield Fault(f"learner.sequence_parallel=true, learner.tp={learner.tp}, rows are multiples of {QUANTUM} tokens",
                    f"with sequence parallelism, {QUANTUM} % learner.tp == 0")


def candidates(arch: Architecture, wanted: LearnerConfig) -> Iterator[LearnerConfig]:
    """Every way to place the same number of learners, with every number of chunks; what is switched on, on or off."""
    world = wanted.world_size
    for tp, pp, vpp, cp in product(_divisors(world), _divisors(world), _divisors(arch.layers), {wanted.cp, 1}):
        if world % (tp * pp * cp) == 0:
            for sequence_parallel, overlap in product({wanted.sequence_parallel, False}, {wanted.overlap, False}):
                yield wanted.model_copy(update={"tp": tp, "pp": pp, "dp": world // (tp * pp * cp), "cp": cp, "vpp": vpp,
                                                "sequence_parallel": sequence_parallel, "overlap": overlap})


def _divisors(number: int) -> list[int]:
    return [way for way in range(1, number + 1) if number % way == 0]


def distance(layout: LearnerConfig, wanted: LearnerConfig) -> float:
    """How many doublings lie between two layouts.

    Data parallelism, which changes the plan, counts double; how a rank orders and cuts its own work counts half.
    """
    tp, pp, dp, cp, vpp = (abs(math.log2(getattr(layout, key) / getattr(wanted, key))) for key in SIZES)
    switched = (layout.sequence_parallel != wanted.sequence_parallel) + (layout.overlap != wanted.overlap)
    return tp + pp + 2 * dp + cp + (vpp + switched) / 2
