"""Budget configurations for property tests, and the plain one that single cases change."""

from __future__ import annotations

from random import Random

from hypothesis import strategies as st

from siri_megatron.config import BudgetConfig

SHAPES = ("cosine", "stair", "stair_cosine", "linear")


def config(**changes):
    return BudgetConfig(**{"l_min": 48, "l_max": 128, "cycle_steps": 24, "cycles": 3, **changes})


@st.composite
def shaped(draw, schedules=(*SHAPES, "constant")):
    """A run of cycles: any duty cycle, warm-up hold and ranges."""
    low, high = sorted((draw(st.integers(1, 900)), draw(st.integers(1, 900))))
    cap = st.integers(low, high)
    steps = draw(st.integers(1, 20)), draw(st.integers(1, 20))
    schedule = draw(st.sampled_from(schedules))
    ranges = draw(st.lists(st.tuples(cap, cap).map(sorted).map(tuple), max_size=3))
    return config(schedule=schedule, l_min=low, l_max=high, cycle_steps=sum(steps), compression_steps=steps[0],
                  cycles=draw(st.integers(1, 4)), hold_steps=draw(st.integers(0, 5)),
                  ranges=() if schedule == "constant" else tuple(ranges))


stages = st.lists(st.tuples(st.integers(1, 9), st.integers(48, 128)), min_size=1, max_size=6).map(
    lambda stages: BudgetConfig(schedule="staged", l_min=48, l_max=128, stages=tuple(stages)))
open_loops = shaped() | stages


@st.composite
def closed_loops(draw):
    """A closed loop: (config, grid of budgets)."""
    low = draw(st.integers(8, 200))
    high = low + draw(st.integers(1, 400))
    window = draw(st.integers(1, 4))
    dwell = window + draw(st.integers(0, 4))
    hold, end = sorted((draw(st.floats(0, 1)), draw(st.floats(0, 1))))
    delta = draw(st.floats(0.01, 0.5))
    closed = {"window": window, "dwell": dwell, "longest_phase": dwell + draw(st.integers(0, 8)),
              "slope": draw(st.integers(1, 200)), "hold_truncated": hold, "end_truncated": end, "delta": delta,
              "hysteresis": draw(st.floats(0, delta)), "kappa": draw(st.floats(1, 1.5)),
              "grow_truncated": draw(st.floats(0, 1)), "plateau": draw(st.floats(0, 0.2)),
              "first_cap": draw(st.none() | st.integers(low, high))}
    budget = BudgetConfig(schedule="closed", l_min=low, l_max=high, cycle_steps=2 * draw(st.integers(2, 12)),
                          cycles=draw(st.integers(1, 4)), hold_steps=draw(st.integers(0, 6)), closed=closed)
    grid = draw(st.sets(st.integers(max(1, low - 10), high + 10), max_size=5)) | {draw(st.integers(low, high - 1))}
    return budget, tuple(sorted(grid))


@st.composite
def worlds(draw, grid):
    """What a run may measure: a function of the step's budget alone, as a reproducible run and its ledger have it.

    From hopeless to solved, from short to long; each step is a new sample of 24 answers, one in twenty has no verdict.
    """
    seed, skill = draw(st.integers(0, 10**6)), draw(st.floats(0, 1))
    longest, drift = draw(st.floats(0.3, 2)), draw(st.floats(-0.03, 0.03))

    def given(budget):
        random = Random(f"{seed} {budget.step} {budget.cap}")
        if random.random() < 0.05:
            return counted([], budget.cap, grid)
        top = max(1, int(max(grid) * longest * (1 + drift * budget.step)))
        return counted([(random.randint(1, top), random.random() < skill) for _ in range(24)], budget.cap, grid)

    return given


def counted(samples, cap, grid):
    """The statistics of (length, right) samples; the longer ones are wrong at a shorter cap."""
    def at(budget):
        ended = [right for length, right in samples if length <= min(budget, cap)]
        share = 1 - len(ended) / len(samples) if samples else 1.0
        return (sum(ended) / len(samples) if samples else None), share, (sum(ended) / len(ended) if ended else None)

    shares = {budget: at(budget) for budget in grid}
    accuracy, truncated, ended = at(cap)
    return {"samples": len(samples) or 24, "accuracy": accuracy, "truncated": truncated, "accuracy_untruncated": ended,
            "budget_accuracy": {str(budget): shares[budget][0] for budget in grid},
            "budget_truncated": {str(budget): shares[budget][1] for budget in grid},
            "budget_accuracy_untruncated": {str(budget): shares[budget][2] for budget in grid},
            "all_wrong_groups": float(accuracy == 0), "all_right_groups": float(accuracy == 1)}
