"""The plan of a training step: advantages, optimizer steps, micro-batches, loss weights. Pure and deterministic.

    rows of the ledger ─► advantages ─► drop groups without signal ─► split groups into mini-batches (optimizer steps)
        ─► for each: pack or pad the *whole* optimizer step ─► raise the count to dp x multiple ─► deal to the ranks

Invariants:
- each_kept_row_once: every kept row is in exactly one micro-batch of one rank of one optimizer step.
- first_groups_first: if there are more groups to train on than asked for, those of the largest numbers are dropped,
    however long their responses are.
- dropped_rows_weigh_nothing: a dropped row is in no micro-batch; its advantage and weight are 0.
- groups_stay_together: the rows of a group are in one optimizer step.
- no_bin_over_capacity: no micro-batch exceeds the capacity (packed: width; bucketed: height x width).
- equal_counts: in an optimizer step every rank has the same number of micro-batches, a multiple of `multiple`.
- no_shape_outside_the_planned: bucketed: every micro-batch has one of `buckets.planned_shapes(widths, capacity)`.
- denominators_independent_of_packing: weights do not change with the mode, dp, multiple, or capacity, nor with the cap.
- deterministic: equal arguments give equal plans, on every machine and Python.
- json_round_trip: `from_json(to_json())` is equal.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from siri_megatron.batching.lengths import (
    ATTENTION_CROSSOVER,
    MicroBytes,
    RowLengths,
    capacity_at,
    cost,
    row_quantum,
    tokens_alone,
)
from siri_megatron.batching.micro_batches import MicroBatch, OptimizerStep, optimizer_step
from siri_megatron.batching.shapes import ShapeRule, shapes_of
from siri_megatron.budget.method import Method
from siri_megatron.budget.step_budget import StepBudget
from siri_megatron.config import AlgorithmConfig, BatchingConfig
from siri_megatron.learner.losses import POLICY_LOSSES, token_weight
from siri_megatron.reward.advantages import advantages, uniform_groups


@dataclass(frozen=True)
class StepPlan:
    """Everything that the learners need to know about a step besides the tokens."""

    mode: Literal["packed", "bucketed"]
    cap: int
    capacity: int
    """Tokens that a micro-batch may hold at this cap."""
    optimizer_steps: tuple[OptimizerStep, ...]
    """Empty when no group carries a signal: then nothing is trained."""
    advantages: tuple[float, ...]
    """[n] 0.0 for dropped rows."""
    token_weights: tuple[float, ...]
    """[n] weight of each sampled response token of a row in the loss, global denominator included; 0.0 for dropped
    rows."""
    lengths: tuple[int, ...]
    """[n] tokens fed to the model: prompt + response - 1."""
    dropped_groups: int
    """Groups of which no row is trained on."""
    method: Method
    """What of the method follows the phase."""
    crossover: float
    """Length at which attention costs as much as the rest (`lengths.cost`)."""
    widths: tuple[int, ...]
    """Bucketed: padded widths of the buckets, ascending; packed: none."""

    def to_json(self) -> dict[str, Any]:
        steps = [{"ranks": [[dict(vars(micro)) for micro in rank] for rank in step.ranks]}
                 for step in self.optimizer_steps]
        return vars(self) | {"optimizer_steps": steps, "method": dict(vars(self.method))}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> StepPlan:
        """Read what `to_json` wrote, also after JSON turned tuples into lists."""
        steps = tuple(
            OptimizerStep(tuple(tuple(MicroBatch(**micro | {"rows": tuple(micro["rows"])}) for micro in rank)
                                for rank in step["ranks"]))
            for step in data["optimizer_steps"])
        columns = {name: tuple(data[name]) for name in ("advantages", "token_weights", "lengths", "widths")}
        return cls(**{**data, **columns, "optimizer_steps": steps, "method": Method(**data["method"])})

    def micro_batches(self) -> list[MicroBatch]:
        """Every micro-batch of every rank and optimizer step."""
        return [micro for step in self.optimizer_steps for rank in step.ranks for micro in rank]

    def stats(self) -> dict[str, float]:
        """Figures for the metrics; docs in `observe.metrics`."""
        micros = self.micro_batches()
        tokens = sum(self.lengths[row] for micro in micros for row in micro.rows)
        padded = sum(micro.padded_tokens for micro in micros)
        return {
            "optimizer_steps": len(self.optimizer_steps),
            "micro_batches": len(micros),
            "empty_micro_batches": sum(not micro.rows for micro in micros),
            "capacity": self.capacity,
            "fill": tokens / padded if padded else 1.0,
            "occupancy": tokens / (self.capacity * len(micros)) if micros else 0.0,
            "shapes": len({micro.shape for micro in micros}),
            "imbalance": self._imbalance(),
            "dropped_groups": self.dropped_groups,
        }

    def widths_used(self) -> dict[str, dict[str, int]]:
        """Bucketed: micro-batches of each padded width, as a metric; packed: none, for there every width is its own."""
        if self.mode == "packed":
            return {}
        counts = Counter(micro.width for micro in self.micro_batches())
        return {"widths_used": {str(width): counts[width] for width in sorted(counts)}}

    def _imbalance(self) -> float:
        """Cost of the heaviest ranks over that of mean ones, summed over optimizer steps; 1.0 is perfect."""
        heaviest = mean = 0.0
        costs = cost(np.array(self.lengths, np.int64), self.crossover).tolist()
        for step in self.optimizer_steps:
            loads = [sum(self._cost(micro, costs) for micro in rank) for rank in step.ranks]
            heaviest, mean = heaviest + max(loads), mean + sum(loads) / len(loads)
        return heaviest / mean if mean else 1.0

    def _cost(self, micro: MicroBatch, costs: Sequence[float]) -> float:
        """Time of a micro-batch, in tokens of a short sequence; padding is computed too. costs: [n] of the rows."""
        if self.mode == "bucketed":
            return micro.height * float(cost(micro.width, self.crossover))
        return (micro.width - sum(self.lengths[row] for row in micro.rows)) + sum(costs[row] for row in micro.rows)


def plan_step(rows: RowLengths, budget: StepBudget, algorithm: AlgorithmConfig, batching: BatchingConfig, *,
              method: Method, dp: int, multiple: int, l_max: int, max_prompt: int, cp: int = 1,
              micro_bytes: MicroBytes = tokens_alone, crossover: float = ATTENTION_CROSSOVER,
              shapes: ShapeRule | None = None, most_groups: int | None = None) -> StepPlan:
    """Plan one training step.

    Args:
        method: that of the step's phase; its advantage counts, not the algorithm's.
        dp: data-parallel ranks to deal to.
        multiple: the number of micro-batches of a rank is a multiple of this (pipeline size fills the pipeline).
        l_max: largest cap of the run.
        max_prompt: longest prompt of the run, tokens.
        cp: context-parallel ranks that share each micro-batch.
        micro_bytes: what a micro-batch takes, from which the capacity at a cap follows.
        crossover: length at which attention costs as much as the rest.
        shapes: bucketed: decides the shapes; None: the best for these rows alone.
        most_groups: train on so many groups at most, those of the smallest numbers; None: on all that can be.

    Raises:
        ConfigError: tokens_per_micro_batch cannot hold the longest possible sample.
        DataError: a row does not fit into a micro-batch.
    """
    kept, fed = kept_rows(rows, algorithm), rows.fed
    if most_groups is not None:
        kept &= np.isin(rows.group, np.unique(rows.group[kept])[:most_groups])

    def capacity_of(longest: int) -> int:
        return capacity_at(budget.cap, tokens_per_micro_batch=batching.tokens_per_micro_batch, l_max=l_max,
                           max_prompt=max_prompt, longest=longest, cp=cp, micro_bytes=micro_bytes)

    longest = int(fed[kept].max(initial=0))
    widths: tuple[int, ...] = ()
    if batching.mode == "bucketed" and kept.any():
        decide = shapes or partial(shapes_of, count=batching.buckets, quantum=row_quantum(cp))
        widths, capacity = decide(fed[kept], max(longest, max_prompt + budget.cap), capacity_of)
    else:
        capacity = capacity_of(longest)
    parts = mini_batches(rows.group, kept, budget.step, algorithm.mini_batches)
    weights = np.zeros(len(rows))
    for part in parts:
        weights[part] = token_weights(rows.sampled[part], algorithm, l_max)
    steps = [optimizer_step(part, fed[part], batching.mode, capacity, dp=dp, multiple=multiple, widths=widths, cp=cp,
                            crossover=crossover) for part in parts]
    advantage = np.where(kept, advantages(method.advantage, rows.reward, rows.group, kept), 0.0)
    dropped = len(np.unique(rows.group)) - len(np.unique(rows.group[kept]))
    return StepPlan(batching.mode, budget.cap, capacity, tuple(steps), tuple(advantage.tolist()),
                    tuple(weights.tolist()), tuple(fed.tolist()), dropped, method, crossover, widths)


def kept_rows(rows: RowLengths, algorithm: AlgorithmConfig) -> NDArray[np.bool_]:
    """[n] rows to train on: with a verdict, with a response, and (if so configured) of a group that carries signal."""
    kept = ~np.isnan(np.asarray(rows.reward, np.float64)) & (rows.sampled > 0)
    if algorithm.drop_uniform_groups:
        kept &= ~uniform_groups(rows.reward, rows.group)
    return kept


def mini_batches(group: NDArray[np.int64], kept: NDArray[np.bool_], step: int, count: int) -> list[NDArray[np.intp]]:
    """Row numbers of each optimizer step: the kept groups in an order that the step decides, cut into even parts.

    The order comes from a hash and not from a generator's stream, so that it is the same in every numpy. With fewer
    groups than parts there are fewer parts.
    """
    if count == 1 or not kept.any():
        return [np.flatnonzero(kept)] if kept.any() else []
    numbers, index = np.unique(group[kept], return_inverse=True)
    order = sorted(range(len(numbers)), key=[_rank_in_step(step, number) for number in numbers.tolist()].__getitem__)
    parts = np.array_split(np.array(order, np.int64), min(count, len(numbers)))
    part_of = np.empty(len(numbers), np.int64)
    part_of[np.concatenate(parts)] = np.repeat(np.arange(len(parts)), [len(part) for part in parts])
    rows = np.flatnonzero(kept)
    return [rows[part_of[index] == part] for part in range(len(parts))]


def token_weights(response: NDArray[np.int64], algorithm: AlgorithmConfig, l_max: int) -> NDArray[np.float64]:
    """Weight of each response token, for the rows of one optimizer step. response: [n] tokens, all positive.

    How they are aggregated is the loss's (`learner.losses`); the constant of dr_grpo is dr_grpo_tokens, or l_max, and
    never follows the cap.
    """
    response = np.asarray(response, np.float64)
    return np.asarray(token_weight(
        POLICY_LOSSES[algorithm.loss].aggregation, response, samples=len(response), tokens=response.sum(),
        constant=algorithm.dr_grpo_tokens or l_max))


def _rank_in_step(step: int, group: int) -> bytes:
    return hashlib.blake2b(f"{step}:{group}".encode(), digest_size=8).digest()
