"""Open-loop runs: every phase and cap of a run from its configuration alone. Pure.

A cycle is a compression phase, then an expansion phase. Step s of a cycle (from 0) is the (s+1)-th consumed, so it
takes the shape at t = s + 1: the lowest cap is consumed by the last step of compression, the highest by the last step
of expansion, and a tag attaches to the weights that this step leaves behind.

Beyond the paper:
- Duty cycle: with `compression_steps` c of T, compression runs through the shape's first half in c steps, expansion
  through the second in T - c. With c = T/2 this is the paper's formula, bit for bit.
- `ranges`: compression falls from the top that the last expansion reached to its own cycle's lowest cap, expansion
  climbs to its own cycle's highest. So the cap never jumps where the range changes.
- Warm-up: `hold_steps` at the first cycle's top come before it and belong to its compression.
- Stages (DeepScaleR's 8K/16K/24K, FastCuRL's 8K/16K/24K/16K): each is a phase of constant cap with a tag of its own.
  The first one compresses; a higher cap than before expands, a lower one compresses (a new cycle begins if the last
  stage expanded), an equal one goes on as before.

Invariants:
- bounded: lowest <= cap <= highest of the cycle; until the end of compression up to the highest of the cycle before.
- lowest_then_highest: compression ends at its cycle's lowest cap, expansion at its highest (stages, `constant` apart).
- monotone_phases: the cap never rises in compression and never falls in expansion.
- slope_limited: a step moves the cosine by at most pi/2 (highest - lowest)/(steps of the phase), stair_cosine by twice
  that, `linear` by (highest - lowest)/(steps of the phase); one more token for rounding.
- phases_tile_the_run: the phases have budget.steps steps in all, none is empty, and their tags differ.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from siri_megatron.budget.schedule import SCHEDULES, Schedule, round_cap
from siri_megatron.budget.step_budget import Phase
from siri_megatron.config import BudgetConfig


@dataclass(frozen=True)
class PhasePlan:
    """One phase of a run: what its steps may have, and the tag at its end."""

    cycle: int
    phase: Phase
    tag: str
    caps: tuple[int, ...]
    """A cap a step, in order."""


def open_loop(config: BudgetConfig) -> tuple[PhasePlan, ...]:
    """The phases of a run in order. `config.schedule` is any but `closed`."""
    return tuple(_stages(config.stages) if config.schedule == "staged" else _cycles(config))


def phase_tag(cycle: int, phase: Phase) -> str:
    """Name of the checkpoint at the end of a phase; iterations count from 1 as in the paper."""
    return f"iter{cycle + 1}-{'compressed' if phase == 'compression' else 'expanded'}"


def _cycles(config: BudgetConfig) -> Iterator[PhasePlan]:
    length, falls = config.cycle_steps or 0, config.compression
    shape, top = SCHEDULES[config.schedule], config.range_of(0)[1]
    for cycle in range(config.cycles or 0):
        low, high = config.range_of(cycle)
        hold = (top,) * config.hold_steps if cycle == 0 else ()
        fall = hold + _half(shape, falls, low, top, first=True)
        climb = _half(shape, length - falls, low, high, first=False)
        yield PhasePlan(cycle, "compression", phase_tag(cycle, "compression"), fall)
        yield PhasePlan(cycle, "expansion", phase_tag(cycle, "expansion"), climb)
        top = high


def _half(shape: Schedule, steps: int, low: int, high: int, *, first: bool) -> tuple[int, ...]:
    """One half of a shape, run through in `steps` steps. The period is 2 x steps, so that t is a whole number."""
    start = 0 if first else steps
    return tuple(round_cap(shape(start + t, 2 * steps, low, high)) for t in range(1, steps + 1))


def _stages(stages: Sequence[tuple[int, int]]) -> Iterator[PhasePlan]:
    cycle, before = 0, stages[0][1]
    phase: Phase = "compression"
    for number, (steps, cap) in enumerate(stages, start=1):
        turned: Phase = "expansion" if cap > before else "compression" if cap < before else phase
        cycle += (phase, turned) == ("expansion", "compression")
        phase, before = turned, cap
        yield PhasePlan(cycle, phase, f"stage{number}", (cap,) * steps)
