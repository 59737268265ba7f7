"""Lengths, widths, costs, and the token capacity at a cap.

Invariants:
- holds_the_longest: the capacity at a cap holds a sample of max_prompt + cap tokens, and every row that is there.
- never_above_the_provisioned_peak: a full micro-batch takes no more memory at any cap than one of
  tokens_per_micro_batch tokens at l_max, which is the capacity there (rounded down to a multiple of 8 x cp).
- grows_as_the_cap_falls: never below that of a larger cap, and above it where memory depends on the longest row.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from siri_megatron.errors import ConfigError, DataError
from siri_megatron.ledger.columns import LedgerColumns

QUANTUM = 8
"""Widths are multiples of this: kernels like it, and sequence parallelism asks for a multiple of TP (up to 8)."""
ATTENTION_CROSSOVER = 8192
"""Length at which causal attention costs about as much as the matrix products, where no model says it
(`Architecture.attention_crossover`: 12 x hidden for a plain transformer). It only steers balance; results never depend
on it."""

Tokens = TypeVar("Tokens", int, NDArray[np.int64])
MicroBytes = Callable[[int, int], int]
"""(tokens of a micro-batch, of its longest row) -> memory it takes, rising with the tokens (`estimate.capacity`)."""


@dataclass(frozen=True)
class RowLengths:
    """What planning needs of the rollouts of a step: arrays [n], in ledger order."""

    prompt: NDArray[np.int64]
    response: NDArray[np.int64]
    group: NDArray[np.int64]
    reward: NDArray[np.float64]
    """Reward at the stamped cap; NaN where there is no verdict, which is never a wrong answer."""
    forced: NDArray[np.int64] | None = None
    """Response tokens that were not sampled; None: none in any row."""

    def __post_init__(self) -> None:
        sizes = {name: len(column) for name, column in vars(self).items() if column is not None}
        if len(set(sizes.values())) != 1:
            raise DataError(f"columns of unequal length: {sizes}", rule="one entry a rollout in every column",
                            fix="read all columns from the same ledger step")

    @classmethod
    def of(cls, rows: LedgerColumns) -> RowLengths:
        """The rollouts of a ledger step."""
        prompt, response, group, forced = (np.asarray(column, np.int64) for column in (
            rows.prompt_length, rows.response_length, rows.group, rows.forced_length))
        return cls(prompt, response, group, np.asarray(rows.reward, np.float64), forced)

    def __len__(self) -> int:
        return len(self.prompt)

    @property
    def sampled(self) -> NDArray[np.int64]:
        """[n] response tokens that the policy sampled: those that the loss counts."""
        response = np.asarray(self.response, np.int64)
        return response if self.forced is None else response - self.forced

    @property
    def fed(self) -> NDArray[np.int64]:
        """[n] tokens that the model reads for each row: prompt and response without the last token."""
        return np.asarray(self.prompt, np.int64) + np.asarray(self.response, np.int64) - 1


def round_up(tokens: Tokens, quantum: int = QUANTUM) -> Tokens:
    """The smallest width that holds so many tokens. A number, or an array."""
    return -(-tokens // quantum) * quantum


def row_quantum(cp: int) -> int:
    """Widths are multiples of this, so that the part of each of `cp` context-parallel ranks is one of QUANTUM."""
    return QUANTUM * cp


def segment_room(length: Tokens, cp: int) -> Tokens:
    """Tokens that a sequence takes in a packed row: context parallelism cuts it into 2 x cp equal chunks. A
    number, or an array."""
    return length if cp == 1 else round_up(length, 2 * cp)


def cost(length: Tokens, crossover: float = ATTENTION_CROSSOVER) -> Any:
    """Time of a sequence, in tokens of a short one: linear layers plus causal attention. A number, or an array."""
    return length * (1 + length / crossover)


def tokens_alone(tokens: int, _: int) -> int:
    """Memory in which the longest row does not count."""
    return tokens


def capacity_at(cap: int, *, tokens_per_micro_batch: int, l_max: int, max_prompt: int, longest: int = 0,
                cp: int = 1, micro_bytes: MicroBytes = tokens_alone) -> int:
    """Tokens that a micro-batch may hold at this cap.

    The rule: as many as take no more memory, with rows of at most max_prompt + cap tokens (or `longest`, if a row has a
    larger stamp), than the run is provisioned for: `tokens_per_micro_batch` with rows of max_prompt + l_max. Where only
    the number of tokens counts, as with every fused attention, that is `tokens_per_micro_batch` at every cap: shorter
    rows leave room for more of them, and a step takes fewer micro-batches. Where the scores of a row are held
    (`estimate.activations`), a shorter row leaves more room than that.
    Context-parallel ranks (`cp`) share a micro-batch: each holds the cp-th part of the capacity.

    Raises:
        ConfigError: the capacity at l_max cannot hold the longest possible sample.
        DataError: a row is longer than the configured capacity.
    """
    quantum = row_quantum(cp)
    longest_ever = round_up(max_prompt + l_max, quantum)
    if tokens_per_micro_batch < longest_ever:
        raise ConfigError(
            f"batching.tokens_per_micro_batch={tokens_per_micro_batch} cannot hold the longest sample: "
            f"{max_prompt} prompt + {l_max} response tokens, {longest_ever} when padded to a multiple of {quantum}",
            rule="tokens_per_micro_batch >= data.max_prompt_tokens + budget.l_max",
            fix=f"set batching.tokens_per_micro_batch={longest_ever} or more, or lower budget.l_max")
    limit = tokens_per_micro_batch // quantum * quantum
    if longest > limit:
        raise DataError(f"a rollout of {longest} tokens does not fit into a micro-batch of {limit}",
                        rule="prompt + response - 1 <= batching.tokens_per_micro_batch",
                        fix=f"set batching.tokens_per_micro_batch={round_up(longest, quantum)} or more")
    peak, row = micro_bytes(limit, max_prompt + l_max), max(max_prompt + cap, longest)
    return _most(limit, quantum, lambda tokens: micro_bytes(tokens, row) <= peak)


def _most(most: int, quantum: int, fits: Callable[[int], bool]) -> int:
    """The largest number that fits, in quanta above one that does: doubled steps up, then halved ones."""
    step = quantum
    while fits(most + step):
        most, step = most + step, 2 * step
    while step > quantum:
        step //= 2
        most += step if fits(most + step) else 0
    return most
