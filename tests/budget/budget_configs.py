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


def tenths(low, high):
    """Numbers that hypothesis does not draw to the ends, as it does with floats."""
    return st.integers(low, high).map(lambda number: number / 10)


@st.composite
def closed_loops(draw):
    """A closed loop: (config, grid of budgets)."""
    low = draw(st.integers(8, 100))
    extent = draw(st.sampled_from([1, 30, 60, 120, 240]))
    window = draw(st.integers(1, 3))
    dwell = window + draw(st.integers(0, 4))
    hold, end = sorted((draw(tenths(0, 10)), draw(tenths(0, 10))))
    delta = draw(tenths(1, 5))
    closed = {"window": window, "dwell": dwell, "longest_phase": dwell + draw(st.integers(0, 12)),
              "slope": draw(st.sampled_from([1, 7, 20, 60])), "hold_truncated": hold, "end_truncated": end,
              "delta": delta, "hysteresis": draw(st.sampled_from([0, delta / 3, delta])), "kappa": draw(tenths(10, 15)),
              "grow_truncated": draw(tenths(0, 5)), "plateau": draw(st.sampled_from([0, 0.05, 0.2])),
              "first_cap": draw(st.none() | st.integers(low, low + extent))}
    budget = BudgetConfig(schedule="closed", l_min=low, l_max=low + extent, cycle_steps=2 * draw(st.integers(4, 16)),
                          cycles=draw(st.integers(1, 4)), hold_steps=draw(st.integers(0, 6)), closed=closed)
    within = st.integers(low, low + extent - 1)
    return budget, tuple(sorted(draw(st.sets(within, min_size=1, max_size=6)) | {low, low + extent + 9}))


@st.composite
def worlds(draw, grid):
    """What a run may measure: a function of the step's budget alone, as a reproducible run and its ledger have it.

    From hopeless to solved, from short to long and changing; each step is a new sample of 24 answers, one in twenty has
    no verdict.
    """
    seed, skill = draw(st.integers(0, 10**6)), draw(tenths(0, 10))
    longest, drift = draw(tenths(3, 20)), draw(tenths(-3, 3)) / 10

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
