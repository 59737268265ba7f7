"""The closed loop: phases that end, and a range that moves, by what is measured. A pure state machine.

    hold at the first cap ─► COMPRESSION: fall to L_min ─► EXPANSION: climb to L_max ─► COMPRESSION ...
      until a window is        ends: recovered at L_min       ends: accuracy is flat
      measured                    or truncation too high         at L_max
           └──── range chosen ────────────────────────────────────── range chosen ────┘

Range, chosen from the last window at the top, when an expansion (or the hold) ends:
- L_min is the smallest budget B of the grid with J(B) >= (1 - delta) J(cap): delta is what going there at once would
  cost, and so the pressure to get shorter. J is free at every budget below the cap, since a reward is a function of the
  clipped response. The last L_min is kept unless another is better by the hysteresis.
- L_max grows to the next budget of the grid while more than `grow_truncated` are truncated at the top. Otherwise it may
  shrink to the smallest B with J(2B) <= kappa J(B) (e3, arXiv 2506.09026), if 2B was observed and no more than
  `grow_truncated` would have been truncated at B, so that it does not grow back at once.

Invariants (per step as issued; tests/budget/test_closed_loop.py has them by these names):
- bounded: l_min <= cap <= l_max.
- slope_limited: the cap moves by at most `slope` tokens a step.
- monotone_phases: it never rises in compression and never falls in expansion.
- dwell: every phase has `dwell` to `longest_phase` steps, the warm-up hold not counted; the run's end may cut the last.
- zero_signal_hold: after a step from which nothing could be learnt compression does not lower the cap.
- truncation_hold: nor while the pooled truncation is above `hold_truncated`.

Sources: the split of J into truncation and accuracy of what ends is Skywork-OR1's; that accuracy be restored before
expanding, and the slope, are SIRI's; the thresholds are ours (no paper gives any that was tuned).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from siri_megatron.budget.measure import Figures, Measure, pool
from siri_megatron.budget.step_budget import Phase
from siri_megatron.config import BudgetConfig, ClosedLoopConfig


@dataclass(frozen=True)
class Rules:
    """The limits of a closed loop, every length known."""

    grid: tuple[int, ...]
    """Budgets within l_min .. l_max at which J is measured, rising."""
    l_max: int
    first_cap: int
    hold_steps: int
    window: int
    dwell: int
    longest_phase: int
    slope: int
    limits: ClosedLoopConfig

    @classmethod
    def of(cls, config: BudgetConfig, grid: Sequence[int]) -> Rules:
        inside = tuple(sorted({budget for budget in grid if config.l_min <= budget <= config.l_max}))
        return cls(inside, config.l_max, config.first_cap, config.hold_steps, config.window, config.dwell,
                   config.longest_phase, config.slope, config.closed)


@dataclass(frozen=True)
class LoopState:
    """Where the loop stands after the last step that it issued."""

    cap: int
    high: int
    """L_max: what the next (or this) expansion climbs to."""
    low: int | None = None
    """L_min: what this (or the last) compression falls to; None during the warm-up hold."""
    recovered_at: float = 0.0
    """Accuracy among the samples that ended within L_min, measured when L_min was chosen."""
    cycle: int = 0
    phase: Phase = "compression"
    issued: int = 0
    """Steps issued in this phase; the hold is counted apart from the compression that follows it."""
    starved: bool = False
    """Nothing could be learnt from the last consumed step."""
    window: tuple[Measure, ...] = ()
    """The last consumed steps of this phase, as many as a decision looks at."""

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "window": [measure.to_json() for measure in self.window]}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> LoopState:
        return cls(**{**data, "window": tuple(Measure.from_json(measure) for measure in data["window"])})


def start(rules: Rules) -> LoopState:
    """Before the first step."""
    return LoopState(cap=rules.first_cap, high=rules.first_cap)


def hear(state: LoopState, rules: Rules, measure: Measure | None, *, starved: bool) -> LoopState:
    """Take in a consumed step. `measure` is None if it has none, or is of the phase before (possible with a lag)."""
    window = (*state.window, measure)[-2 * rules.window:] if measure else state.window
    return replace(state, window=window, starved=starved)


def issue(state: LoopState, rules: Rules) -> tuple[LoopState, str]:
    """Issue the next step: the state with its cap, and what was decided on the way ('' if nothing was)."""
    state, decided = _decide(state, rules)
    return replace(state, cap=_next_cap(state, rules), issued=state.issued + 1), decided


def _decide(state: LoopState, rules: Rules) -> tuple[LoopState, str]:
    if state.low is None:
        warm = state.issued >= rules.hold_steps and len(state.window) >= rules.window
        return _aim(state, rules, "warm-up ends") if warm else (state, "")
    reason = _reason_to_end(state, rules)
    if not reason:
        return state, ""
    ended = f"{state.phase} ends at cap {state.cap}: {reason}"
    if state.phase == "compression":
        turned = replace(state, phase="expansion", issued=0, window=())
        return turned, f"{ended}; expansion to {state.high}"
    return _aim(replace(state, cycle=state.cycle + 1, phase="compression"), rules, ended)


def _reason_to_end(state: LoopState, rules: Rules) -> str:
    if state.issued < rules.dwell:
        return ""
    reason = _compressed(state, rules) if state.phase == "compression" else _expanded(state, rules)
    longest = f"closed.longest_phase={rules.longest_phase}" if state.issued >= rules.longest_phase else ""
    return reason or longest


def _compressed(state: LoopState, rules: Rules) -> str:
    recent = state.window[-rules.window:]
    if len(recent) < rules.window:
        return ""
    now = pool(recent, rules.l_max)
    if now.truncated >= rules.limits.end_truncated:
        return f"{now.truncated:.0%} truncated"
    arrived = all(measure.cap <= (state.low or 0) for measure in recent)
    if arrived and now.accuracy_untruncated >= (1 - rules.limits.recovery) * state.recovered_at:
        return f"answers that end are right at {now.accuracy_untruncated:.1%}, before it {state.recovered_at:.1%}"
    return ""


def _expanded(state: LoopState, rules: Rules) -> str:
    if len(state.window) < 2 * rules.window or any(measure.cap < state.high for measure in state.window):
        return ""
    before, now = (pool(part, rules.l_max).accuracy for part in
                   (state.window[:rules.window], state.window[rules.window:]))
    return f"accuracy {before:.1%}, then {now:.1%}" if now - before <= rules.limits.plateau else ""


def _next_cap(state: LoopState, rules: Rules) -> int:
    if state.phase == "expansion":
        return max(state.cap, min(state.cap + rules.slope, state.high))
    return state.cap if _held(state, rules) else min(state.cap, max(state.cap - rules.slope, state.low or 0))


def _held(state: LoopState, rules: Rules) -> bool:
    if state.low is None or state.starved:
        return True
    recent = state.window[-rules.window:]
    return bool(recent) and pool(recent, rules.l_max).truncated > rules.limits.hold_truncated


def _aim(state: LoopState, rules: Rules, ended: str) -> tuple[LoopState, str]:
    """Begin a compression: choose the range from the last window at the top."""
    recent = state.window[-rules.window:]
    turned = replace(state, issued=0, window=())
    if not recent:
        return turned, f"{ended}; nothing measured, L_min stays {state.low}"
    top, now = min(measure.cap for measure in recent), pool(recent, rules.l_max)
    curve = {budget: pool(recent, budget) for budget in rules.grid if budget < top}
    low = _next_low(state.low, top, now.accuracy, {budget: at.accuracy for budget, at in curve.items()}, rules.limits)
    curve[top] = now  # if the caps differ, a little too high, which speaks against shrinking
    before = max(state.high, top)
    high = max(_next_high(before, now, curve, rules), min(_above(low, rules), before))
    return (replace(turned, low=low, high=high, recovered_at=curve[low].accuracy_untruncated),
            f"{ended}; compression to {low} (J {curve[low].accuracy:.1%} of {now.accuracy:.1%}), next L_max {high}")


def _next_low(before: int | None, top: int, goal: float, curve: Mapping[int, float], limits: ClosedLoopConfig) -> int:
    """The smallest budget that keeps the accuracy at the top (`goal`); the top if none does, or nothing is right."""
    def smallest(below: int, share: float) -> int | None:
        return next((budget for budget, accuracy in curve.items() if budget < below and accuracy >= share * goal), None)

    if not goal:
        return top
    if before in curve and before is not None and curve[before] >= (1 - limits.delta - limits.hysteresis) * goal:
        return smallest(before, 1 - limits.delta + limits.hysteresis) or before
    return smallest(top, 1 - limits.delta) or top


def _next_high(before: int, now: Figures, curve: Mapping[int, Figures], rules: Rules) -> int:
    """One notch up while the top truncates, else down to where doubling the budget gains nearly nothing."""
    if now.truncated > rules.limits.grow_truncated:
        return _above(before, rules)
    observed = (budget for budget in curve if budget < before and 2 * budget in curve)
    return next((budget for budget in observed if _enough(budget, curve, rules.limits)), before)


def _enough(budget: int, curve: Mapping[int, Figures], limits: ClosedLoopConfig) -> bool:
    at, twice = curve[budget], curve[2 * budget]
    return twice.accuracy <= limits.kappa * at.accuracy and at.truncated <= limits.grow_truncated


def _above(budget: int, rules: Rules) -> int:
    """The next notch: a budget of the grid, or l_max."""
    return next((notch for notch in rules.grid if notch > budget), rules.l_max)
