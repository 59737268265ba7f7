"""One ledger row: a rollout with its stamp, its tokens, its reward and how it came about. No I/O."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

import pyarrow as pa

CUT = "cut"
"""Finish reason of a response that the length rule DOT cut; engines say `stop` or `length`."""


@dataclass(frozen=True)
class Rollout:
    """One sampled response to one prompt.

    `step`, `phase`, `cap` and `cap_version` are the group's stamp: given at admission, never changed. The weight
    versions in `spans` are measured, not stamped.
    """

    step: int
    """Training step that consumes the row."""
    phase: str
    """`compression` or `expansion`."""
    cap: int
    """Response budget of the group, tokens: the step's, or less where prompts have caps of their own."""
    cap_version: int
    """Number of changes of the cap up to this step."""
    group: int
    """Index of the prompt within the step."""
    sample: int
    """Index of the response within the group."""
    prompt_id: str
    tier: str
    """Difficulty class of the prompt; evaluation reports it apart."""
    answer: str
    """The reference answer."""
    prompt_ids: list[int]
    response_ids: list[int]
    """Sampled tokens with the stop token, if there is one, and forced ones; at most `cap`."""
    logprobs: list[float]
    """The engine's log-probability of each response token at the sampling temperature (float32)."""
    finish_reason: str
    """What the engine said: `stop` or `length`; or CUT."""
    truncated: bool
    """No stop token within the cap, as sampled: a response that DOT cut had ended."""
    outcome: str
    """`right`, `wrong`, `partial` (custom rewards) or `failed` (no verdict) at the cap."""
    reward: float
    """At the cap: 1 if right, 0 if wrong, between them if partial, NaN if failed (which is not the same as wrong)."""
    budget_rewards: list[float]
    """Reward of clip(response, B), in the same values, for each B of `rollout.budget_grid`."""
    spans: list[dict[str, Any]]
    """Weight versions the tokens were sampled under: {"version": "7", "start": 0, "end": 57}, end exclusive."""
    engine: int
    """Index of the engine that answered."""
    seconds: float
    """From sending the request to its answer."""
    forced_start: int = 0
    """First of the response tokens that were not sampled, but put there (`rollout.forced`); their log-prob is 0."""
    forced_end: int = 0
    """Behind the last of them; equal to forced_start: there are none."""


_SPAN = pa.struct([("version", pa.string()), ("start", pa.int32()), ("end", pa.int32())])

_TYPES: dict[str, pa.DataType] = {
    "step": pa.int32(), "phase": pa.string(), "cap": pa.int32(), "cap_version": pa.int32(),
    "group": pa.int32(), "sample": pa.int32(), "prompt_id": pa.string(), "tier": pa.string(), "answer": pa.string(),
    "prompt_ids": pa.list_(pa.int32()), "response_ids": pa.list_(pa.int32()), "logprobs": pa.list_(pa.float32()),
    "finish_reason": pa.string(), "truncated": pa.bool_(), "outcome": pa.string(), "reward": pa.float32(),
    "budget_rewards": pa.list_(pa.float32()), "spans": pa.list_(_SPAN), "engine": pa.int32(), "seconds": pa.float32(),
    "forced_start": pa.int32(), "forced_end": pa.int32(),
}

SCHEMA = pa.schema([pa.field(field.name, _TYPES[field.name], nullable=False) for field in fields(Rollout)])


def to_batch(rows: list[Rollout]) -> pa.RecordBatch:
    """One record batch in SCHEMA from rows, in their order."""
    columns = [pa.array([getattr(row, name) for row in rows], _TYPES[name]) for name in SCHEMA.names]
    return pa.RecordBatch.from_arrays(columns, schema=SCHEMA)


def from_columns(columns: list[pa.Array], i: int) -> Rollout:
    """Row `i` of a batch's columns (in SCHEMA's order); touches only that row's memory."""
    return Rollout(*[_value(column[i]) for column in columns])


def _value(scalar: pa.Scalar) -> Any:
    """A Python value; numeric lists go through numpy, which is 20 times faster than `as_py` on long responses."""
    if pa.types.is_list(scalar.type) and pa.types.is_primitive(scalar.type.value_type):
        return scalar.values.to_numpy(zero_copy_only=False).tolist()
    return scalar.as_py()
