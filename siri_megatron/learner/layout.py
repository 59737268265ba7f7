"""The launch check: can this model be cut into this layout? Pure, no torch, so `--dry-run` can say it at once.

Invariants:
- refused_with_both_values: every refusal names the model's field and the learner's, the rule, and a layout that works.
- nearest_works: the proposed layout itself passes the check, and keeps the number of learners where that is possible.
- vocab_never_refused: a vocabulary that TP does not divide is padded inside Megatron (`Architecture.padded_vocab`).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

from siri_megatron.config import LearnerConfig
from siri_megatron.errors import ConfigError
from siri_megatron.learner.architecture import Architecture

Layout = tuple[int, int, int]
"""(tp, pp, dp)"""


def check_layout(model_config: Mapping[str, Any], learner: LearnerConfig, *, context: int) -> Architecture:
    """Check a `config.json` against a layout.

    Args:
        context: longest sequence of the run, tokens (max_prompt_tokens + the largest cap).

    Returns:
        The architecture, for who needs it next.

    Raises:
        ConfigError: an unsupported feature, a size that the layout does not divide, or too long a context.
    """
    arch = Architecture.of(model_config)
    _check_self(arch)
    for field, size, key, ways in _divisions(arch, learner.tp, learner.pp):
        if size % ways:
            raise ConfigError(f"{key}={ways} does not divide the model's {field}={size}",
                              rule=f"{field} % {key} == 0", fix=f"nearest layout that works: {nearest(arch, learner)}")
    if context > arch.max_positions:
        raise ConfigError(
            f"a sequence may have {context} tokens (data.max_prompt_tokens + budget.l_max), "
            f"the model's max_position_embeddings={arch.max_positions}", rule="context <= max_position_embeddings",
            fix=f"lower budget.l_max by {context - arch.max_positions}, or start from a model with a longer context")
    return arch


def nearest(arch: Architecture, learner: LearnerConfig) -> str:
    """The layout closest to the wanted one that can be run, as overrides."""
    wanted = (learner.tp, learner.pp, learner.dp)
    tp, pp, dp = min(_candidates(arch, math.prod(wanted)), key=lambda layout: _distance(layout, wanted))
    return f"learner.tp={tp} learner.pp={pp} learner.dp={dp}"


def _check_self(arch: Architecture) -> None:
    if arch.heads % arch.groups:
        raise ConfigError(f"num_attention_heads={arch.heads}, num_key_value_heads={arch.groups}",
                          rule="num_attention_heads % num_key_value_heads == 0", fix="mend config.json")


def _divisions(arch: Architecture, tp: int, pp: int) -> list[tuple[str, int, str, int]]:
    """(field, its size, layout key, how many ways it is cut)"""
    return [("num_attention_heads", arch.heads, "learner.tp", tp),
            ("num_key_value_heads", arch.groups, "learner.tp", tp),
            ("intermediate_size", arch.ffn, "learner.tp", tp),
            ("num_hidden_layers", arch.layers, "learner.pp", pp)]


def _candidates(arch: Architecture, world: int) -> Iterator[Layout]:
    for tp in _divisors(world):
        for pp in _divisors(world // tp):
            if all(size % ways == 0 for _, size, _, ways in _divisions(arch, tp, pp)):
                yield tp, pp, world // tp // pp


def _divisors(number: int) -> list[int]:
    return [way for way in range(1, number + 1) if number % way == 0]


def _distance(layout: Layout, wanted: Layout) -> float:
    """How many doublings lie between two layouts; data parallelism, which changes the plan, counts double."""
    tp, pp, dp = (abs(math.log2(is_ / want)) for is_, want in zip(layout, wanted, strict=True))
    return tp + pp + 2 * dp
