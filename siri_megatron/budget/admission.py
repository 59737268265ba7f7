"""Which steps may be sampled now: how far the collector runs ahead of the learners. Pure.

    consumed ──► [ next step │ next + 1 │ ... │ pushed + lag ] ──► later steps wait for the next push
                  └── admitted, not consumed: each holds prompts_per_step slots ──┘

Rank 0 admits steps; it alone consumes them and pushes weights, so every bound follows from when it admits. The version
of the weights that have seen steps 0 .. v-1 is v; a token of step s sampled under v is s - v steps old when it is
trained on.

Invariants:
- staleness_bounded: a token admitted here is at most `lag` steps old when it is consumed, and never from the future.
- slots_bounded: at most (lag + 1) x prompts_per_step groups are admitted and not consumed.
- in_order: steps are admitted in order and none is left out, so none is trained twice or skipped.
- never_stuck: once the weights for the next step are pushed, it is admitted.
- synchronous_without_lag: with lag 0 nothing but the next step is admitted, under the weights that it is trained from.
- decided_by_what_was_heard: what decides the admission of step s has heard of the steps before s - lag, of all of them
  and of no other, whenever the admission happens; so a replay and a resumed run decide the same.

Source: slots held from admission to consumption are TitanRL's; the bound is AReaL's (arXiv 2505.24298, eq. 3).
"""

from __future__ import annotations

from typing import Any


def admissible(next_step: int, *, pushed: int, lag: int, steps: int) -> range:
    """The steps that may be admitted and are not consumed yet.

    Args:
        next_step: the step that is trained next; steps 0 .. next_step-1 are consumed.
        pushed: weight version that every serving engine has confirmed.
        steps: steps of the run.
    """
    return range(next_step, max(next_step, min(pushed + lag + 1, steps)))


def staleness(step: int, version: Any) -> Any:
    """Steps by which a token is older than the weights that its step is trained from. version: a number or an array."""
    return step - version


def allowed(step: int, version: int, lag: int) -> bool:
    """May a token of `step` come from the weights `version`?"""
    return bool(0 <= staleness(step, version) <= lag)


def steps_heard(step: int, lag: int) -> int:
    """How many steps, from the first on, what decides the admission of `step` has heard of."""
    return max(0, step - lag)
