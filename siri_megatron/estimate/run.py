"""A whole run: every phase and cycle out of estimates at a few caps. Pure.

Steps are estimated at up to CAPS caps between the lowest and the highest of the schedule; at a cap between two of them
all numbers are interpolated linearly. A closed loop decides its caps from what it measures: it is estimated as the
cosine with its bounds and cycles.

Invariants:
- phases_add_up: the seconds of the phases and of the start are those of the run, and those of the cycles too.
- gpu_hours: of a phase, a cycle, or the run: devices x seconds / 3600.
- every_step_counts: the phases have the steps of the run.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from siri_megatron.budget.open_loop import PhasePlan, open_loop
from siri_megatron.config import BudgetConfig, LearnerConfig, RunConfig
from siri_megatron.estimate.memory import optimizer_bytes
from siri_megatron.estimate.parameters import model_parameters
from siri_megatron.estimate.room import Room, misfits, room_at
from siri_megatron.estimate.setup import Setup
from siri_megatron.estimate.step import CapEstimate, at_cap, evaluation_s

CAPS = 9
SUMMED = ("tokens", "train_tokens", "generation_s", "verification_s", "training_s", "push_s", "overhead_s", "step_s")
HOUR = 3600.0


@dataclass(frozen=True)
class PhaseEstimate:
    """One phase of the run. Seconds and tokens are those of the whole phase."""

    tag: str
    cycle: int
    phase: str
    first_step: int
    last_step: int
    first_cap: int
    last_cap: int
    mean_cap: float
    tokens: float
    train_tokens: float
    generation_s: float
    verification_s: float
    training_s: float
    push_s: float
    overhead_s: float
    step_s: float
    """Of all steps."""
    commit_s: float
    export_s: float
    evaluation_s: float
    seconds: float
    """With commits, export and evaluation."""
    gpu_hours: float
    micro_batches: tuple[float, float]
    """Fewest and most of a rank in a step."""
    micro_batch_tokens: tuple[float, float]
    """Smallest and largest mean."""
    bubble: float
    """Mean share."""
    learner_bytes: int
    """Fullest rank at the phase's largest cap."""
    bottleneck: str
    """generation, training, or the one that it is at the phase's first cap and the one at its last."""

    @property
    def steps(self) -> int:
        return self.last_step - self.first_step + 1


@dataclass(frozen=True)
class Point:
    """A cap: the step and the memory."""

    step: CapEstimate
    room: Room


@dataclass(frozen=True)
class RunEstimate:
    """Everything that is known of a run before it starts."""

    setup: Setup
    points: tuple[Point, ...]
    """By cap, ascending."""
    phases: tuple[PhaseEstimate, ...]
    start_s: float
    """Evaluation of the starting weights."""
    misfits: tuple[str, ...]

    @property
    def seconds(self) -> float:
        return self.start_s + sum(phase.seconds for phase in self.phases)

    @property
    def gpu_hours(self) -> float:
        return gpu_hours(self.setup, self.seconds)

    @property
    def cycles(self) -> dict[int, float]:
        """Cycle -> seconds, without the start."""
        spent: dict[int, float] = {}
        for phase in self.phases:
            spent[phase.cycle] = spent.get(phase.cycle, 0.0) + phase.seconds
        return spent

    @property
    def waiting(self) -> dict[str, float]:
        """Share of the steps' time in which learners, and engines, have nothing to do."""
        steps = sum(phase.step_s for phase in self.phases)
        busy = {"learners": sum(phase.training_s for phase in self.phases),
                "engines": sum(phase.generation_s for phase in self.phases)}
        return {side: 1 - spent / steps for side, spent in busy.items()}

    @property
    def turns_at(self) -> list[int]:
        """Caps from which on, going up, the other side is the slower one."""
        return [after.step.cap for before, after in zip(self.points, self.points[1:], strict=False)
                if before.step.bottleneck != after.step.bottleneck]


def estimate(setup: Setup) -> RunEstimate:
    """Estimate a run.

    Raises:
        ConfigError: a micro-batch cannot hold the longest sample.
    """
    phases = open_loop(nominal(setup.config.budget))
    caps = chosen_caps({cap for phase in phases for cap in phase.caps})
    points = tuple(Point(at_cap(setup, cap), room_at(setup, cap)) for cap in caps)
    evaluation = evaluation_s(setup)
    start = evaluation if setup.config.evaluation.at_start else 0.0
    return RunEstimate(setup, points, tuple(_phases(setup, phases, points, evaluation)), start,
                       tuple(misfits(setup)))


def nominal(budget: BudgetConfig) -> BudgetConfig:
    """The open-loop schedule that stands for a closed one."""
    if budget.schedule != "closed":
        return budget
    return BudgetConfig(**budget.model_dump(exclude={"closed"}) | {"schedule": "cosine"})


def chosen_caps(caps: Iterable[int], most: int = CAPS) -> list[int]:
    """The caps themselves, or so many evenly between the lowest and the highest."""
    distinct = sorted(set(caps))
    if len(distinct) <= most:
        return distinct
    return sorted({round(cap) for cap in np.linspace(distinct[0], distinct[-1], most)})


def gpu_hours(setup: Setup, seconds: float) -> float:
    """GPU-hours; on a CPU machine hours of the machine."""
    return setup.devices * seconds / HOUR


def commit_s(setup: Setup) -> float:
    """A checkpoint: weights and AdamW's state, written by all ranks together."""
    rates = setup.machine.rates
    state = optimizer_bytes(model_parameters(setup.arch), setup.work.item, LearnerConfig())
    return rates.commit_s + (setup.weight_bytes + state) * rates.commit_byte_s


def _phases(setup: Setup, phases: Sequence[PhasePlan], points: Sequence[Point], evaluation: float
            ) -> Iterable[PhaseEstimate]:
    first = 0
    for phase in phases:
        yield _phase(setup, phase, first, points, evaluation)
        first += len(phase.caps)


def _phase(setup: Setup, phase: PhasePlan, first: int, points: Sequence[Point], evaluation: float) -> PhaseEstimate:
    config, caps = setup.config, phase.caps
    spent = {name: float(np.sum(_at(points, name, caps))) for name in SUMMED}
    commits = len(_commits(config, first, len(caps))) * commit_s(setup)
    export = setup.weight_bytes * setup.machine.rates.export_byte_s if config.checkpoint.export_phase_ends else 0.0
    evaluated = evaluation if config.evaluation.at_phase_ends else 0.0
    seconds = spent["step_s"] + commits + export + evaluated
    counts, sizes = _at(points, "micro_batches", caps), _at(points, "micro_batch_tokens", caps)
    return PhaseEstimate(
        phase.tag, phase.cycle, phase.phase, first, first + len(caps) - 1, caps[0], caps[-1], float(np.mean(caps)),
        **spent, commit_s=commits, export_s=export, evaluation_s=evaluated, seconds=seconds,
        gpu_hours=gpu_hours(setup, seconds), micro_batches=(float(counts.min()), float(counts.max())),
        micro_batch_tokens=(float(sizes.min()), float(sizes.max())), bubble=float(np.mean(_at(points, "bubble", caps))),
        learner_bytes=room_at(setup, max(caps)).learner.on_device, bottleneck=_bottleneck(points, caps))


def _commits(config: RunConfig, first: int, steps: int) -> list[int]:
    """Steps after which the run commits: every so many, and at the phase's end."""
    return [step for step in range(first, first + steps)
            if (step + 1) % config.checkpoint.every_steps == 0 or step == first + steps - 1]


def _at(points: Sequence[Point], name: str, caps: Sequence[int]) -> np.ndarray:
    return np.interp(caps, [point.step.cap for point in points], [getattr(point.step, name) for point in points])


def _bottleneck(points: Sequence[Point], caps: Sequence[int]) -> str:
    generation, training = _at(points, "generation_s", caps), _at(points, "training_s", caps)
    sides = ["generation" if slower else "training" for slower in (generation >= training)[[0, -1]]]
    return sides[0] if sides[0] == sides[1] else f"{sides[0]}, then {sides[1]}"
