"""How well and how fast steps are planned: `python tools/bench/planner.py [options]`. No torch, one core.

Packed: for every distribution of lengths, cap, capacity (times the longest sample), number of data-parallel ranks and
pipeline multiple, one optimizer step of --samples rows is planned by

    ours   plan_step: pack the step, raise the number of micro-batches, deal to the ranks
    FFD    first-fit decreasing row by row, bins dealt round robin
    KK     rows to the ranks by Karmarkar-Karp on cost, each rank's packed by first fit

A line sums up all caps, ranks and multiples of a distribution at a capacity:

    fill       real tokens over the capacity of the micro-batches *before* their number is raised, the lowest
    of bound   that number of micro-batches over a lower bound that no packing can pass (packers.py), the highest
    imbalance  cost of the heaviest rank over the mean, less 1, the highest; where one row costs more than a rank's
               share, over that row instead
    even       costliest micro-batch over the mean one, median: a pipeline runs at the pace of the costliest

Targets: at most 2% (or one micro-batch) above the bound, or fill >= 0.98 where samples are much shorter than the
capacity (mean <= 1/8 and longest <= 1/2 of it); imbalance <= 2%. `misses` counts the plans of a line beyond them.

Bucketed: padding of K buckets with the widths chosen by dynamic programming, and with widths at equal numbers of rows.
Speed: plan_step from end to end, CPU time, best of three (as in the column ms); the exponent is that of n in a fit over
all n >= 4096.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from lengths import R1_QUANTILES, SIGMA, measured_lengths, read_quantiles
from numpy.typing import NDArray
from packers import fewest_bins, first_fit_dealt, karmarkar_karp_dealt
from rich.console import Console
from rich.table import Table

from siri_megatron.batching.buckets import bucket_widths
from siri_megatron.batching.lengths import ATTENTION_CROSSOVER, RowLengths, cost, round_up
from siri_megatron.batching.packing import pack
from siri_megatron.batching.plan import StepPlan, plan_step
from siri_megatron.budget.method import Method
from siri_megatron.budget.step_budget import StepBudget
from siri_megatron.config import AlgorithmConfig, BatchingConfig, OptimizerConfig

Ints = NDArray[np.int64]
CAPS = (512, 1024, 2048, 4096, 8192, 16384, 32768)
CAPACITIES = (1, 2, 8)
LAYOUTS = ((1, 1), (2, 4), (4, 8), (8, 1), (8, 8))
"""(data-parallel ranks, pipeline multiple)"""
PROMPT = (32, 256)
"""Shortest and longest prompt, tokens."""
SIZES = (1024, 4096, 16384, 65536, 262144, 1048576)
PLAIN_UP_TO = 16384
"""Rows up to which the plain packers are timed: they take quadratic time."""
BUCKETS = (1, 2, 4, 8)
ALGORITHM = AlgorithmConfig(mini_batches=1, drop_uniform_groups=False)
METHOD = Method.of(ALGORITHM, OptimizerConfig(lr=1e-6))


@dataclass(frozen=True)
class Case:
    """What one plan came to, beside the plain packers. Shares; times in milliseconds."""

    distribution: str
    cap: int
    capacity: int
    dp: int
    multiple: int
    fill: float
    of_bound: float
    imbalance: float
    even: float
    missed: bool
    ms: float
    ffd_of_bound: float
    ffd_imbalance: float
    ffd_ms: float
    kk_of_bound: float
    kk_imbalance: float
    kk_ms: float


def drawn(distribution: str, cap: int, count: int, rng: np.random.Generator, quantiles: NDArray[np.float64]) -> Ints:
    """[count] tokens that the model reads: prompt and response, each response at most the cap."""
    prompts, longest = rng.integers(PROMPT[0], PROMPT[1] + 1, count), PROMPT[1] + cap
    if distribution == "r1":
        return prompts + measured_lengths(quantiles, cap, count, rng)
    if distribution == "uniform":
        return prompts + rng.integers(1, cap + 1, count)
    if distribution == "lognormal":
        return prompts + np.clip(np.rint(cap / 4 * np.exp(rng.normal(0, SIGMA, count))), 1, cap).astype(np.int64)
    return np.resize(np.array(ADVERSARIAL[distribution](longest), np.int64), count)


ADVERSARIAL: dict[str, Callable[[int], Sequence[int]]] = {
    "equal": lambda longest: [longest],
    "over half": lambda longest: [longest // 2 + 1],
    "over a third": lambda longest: [longest // 3 + 1],
    "giant": lambda longest: [longest, *[PROMPT[0]] * 99_999_999][:4096],
    "long and short": lambda longest: [longest, *[PROMPT[0]] * 15],
}
"""Rows of a hard step, repeated, from the longest possible one."""
DISTRIBUTIONS = ("uniform", "lognormal", "r1", *ADVERSARIAL)


def planned(lengths: Ints, capacity: int, longest: int, *, dp: int, multiple: int, mode: Any = "packed",
            buckets: int = 4) -> StepPlan:
    """One optimizer step of rows that all carry a signal."""
    rows = RowLengths(np.ones_like(lengths), lengths, np.arange(len(lengths)) // 8, np.arange(len(lengths)) % 2 * 1.0)
    return plan_step(rows, StepBudget(0, 0, "compression", longest - 1, 1), ALGORITHM,
                     BatchingConfig(mode=mode, tokens_per_micro_batch=capacity, buckets=buckets), method=METHOD, dp=dp,
                     multiple=multiple, l_max=longest - 1, max_prompt=1)


def measure(distribution: str, cap: int, factor: int, lengths: Ints) -> list[Case]:
    """Every layout at one distribution, cap and capacity."""
    longest = round_up(PROMPT[1] + cap)
    capacity = factor * longest
    falling = np.sort(lengths)[::-1]
    costs, bound = cost(falling, ATTENTION_CROSSOVER), fewest_bins(falling, capacity)
    filled = int(pack(falling, capacity).max()) + 1
    short = falling.mean() <= capacity / 8 and falling[0] <= capacity / 2
    cases = []
    for dp, multiple in LAYOUTS:
        plan, ms = timed(lambda dp=dp, multiple=multiple: planned(lengths, capacity, longest, dp=dp, multiple=multiple),
                         times=3)
        (step,) = plan.optimizer_steps
        micros = [[sum(float(cost(lengths[row])) for row in micro.rows) for micro in rank] for rank in step.ranks]
        loads = [sum(rank) for rank in micros]
        ffd, ffd_ms = timed(lambda dp=dp, multiple=multiple: first_fit_dealt(falling, capacity, dp, multiple))
        kk, kk_ms = timed(lambda dp=dp, multiple=multiple: karmarkar_karp_dealt(falling, costs, capacity, dp, multiple))
        imbalance = excess(loads, costs)
        fill = float(falling.sum()) / (capacity * filled)
        missed = imbalance > 0.02 or (filled > max(1.02 * bound, bound + 1) and not (short and fill >= 0.98))
        every = [spent for rank in micros for spent in rank]
        cases.append(Case(
            distribution, cap, factor, dp, multiple, fill, filled / bound, imbalance, max(every) / np.mean(every),
            bool(missed), ms, ffd[1] / bound, excess(np.bincount(ffd[0], costs, dp), costs), ffd_ms, kk[1] / bound,
            excess(np.bincount(kk[0], costs, dp), costs), kk_ms))
    return cases


def excess(loads: Sequence[float] | NDArray[np.float64], costs: NDArray[np.float64]) -> float:
    """Cost of the heaviest rank over the least that it can be, less 1."""
    return float(max(loads) / max(costs.sum() / len(loads), costs.max()) - 1)


def timed(work: Callable[[], Any], times: int = 1) -> tuple[Any, float]:
    """Its result, and the CPU milliseconds of the fastest of so many times."""
    took = []
    for _ in range(times):
        start = time.process_time()
        result = work()
        took.append(1e3 * (time.process_time() - start))
    return result, min(took)


def quality_table(cases: Sequence[Case]) -> Table:
    table = Table(title="packed: worst over caps, ranks and multiples")
    for column in ("lengths", "capacity", "fill", "of bound", "imbalance", "even", "misses", "ms", "FFD of bound",
                   "FFD imbalance", "FFD ms", "KK of bound", "KK imbalance", "KK ms"):
        table.add_column(column, justify="left" if column == "lengths" else "right")
    for distribution, capacity in dict.fromkeys((case.distribution, case.capacity) for case in cases):
        of = [case for case in cases if (case.distribution, case.capacity) == (distribution, capacity)]
        table.add_row(
            distribution, f"{capacity}x", f"{min(case.fill for case in of):.3f}", f"{highest(of, 'of_bound'):.3f}",
            f"{highest(of, 'imbalance'):.2%}", f"{statistics.median(case.even for case in of):.2f}",
            f"{sum(case.missed for case in of)}/{len(of)}", f"{highest(of, 'ms'):.0f}",
            f"{highest(of, 'ffd_of_bound'):.3f}", f"{highest(of, 'ffd_imbalance'):.1%}", f"{highest(of, 'ffd_ms'):.0f}",
            f"{highest(of, 'kk_of_bound'):.3f}", f"{highest(of, 'kk_imbalance'):.1%}", f"{highest(of, 'kk_ms'):.0f}")
    return table


def highest(cases: Sequence[Case], name: str) -> float:
    return max(getattr(case, name) for case in cases)


def buckets_report(lengths: Ints, cap: int) -> list[dict[str, float]]:
    """Padding over real tokens for each number of buckets, and what the whole bucketed plan comes to."""
    rows, longest = [], round_up(PROMPT[1] + cap)
    for count in BUCKETS:
        best = padding(lengths, bucket_widths(lengths, count))
        edges = np.quantile(lengths, np.linspace(0, 1, count + 1)[1:], method="higher")
        even = padding(lengths, tuple(np.unique(-(-edges // 8) * 8).tolist()))
        plan, ms = timed(lambda count=count: planned(lengths, 8 * longest, longest, dp=8, multiple=1, mode="bucketed",
                                                     buckets=count))
        stats = plan.stats()
        rows.append({"buckets": count, "padding": best, "padding_equal_counts": even, "plan_fill": stats["fill"],
                     "imbalance": stats["imbalance"] - 1, "shapes": stats["shapes"], "ms": ms})
    return rows


def padding(lengths: Ints, widths: Sequence[int]) -> float:
    return float(np.array(widths)[np.searchsorted(widths, lengths)].sum() / lengths.sum() - 1)


def speed_report(draw: Callable[[int], Ints], sizes: Sequence[int], cap: int) -> list[dict[str, float]]:
    rows, longest = [], round_up(PROMPT[1] + cap)
    for count in sizes:
        lengths = draw(count)
        falling = np.sort(lengths)[::-1]
        ms = timed(lambda lengths=lengths: planned(lengths, 4 * longest, longest, dp=8, multiple=1), times=3)[1]
        row = {"rows": count, "ms": ms}
        if count <= PLAIN_UP_TO:
            row["ffd_ms"] = timed(lambda falling=falling: first_fit_dealt(falling, 4 * longest, 8, 1))[1]
            row["kk_ms"] = timed(lambda falling=falling: karmarkar_karp_dealt(falling, cost(falling), 4 * longest, 8, 1)
                                 )[1]
        rows.append(row)
    return rows


def exponent(rows: Sequence[dict[str, float]]) -> float:
    """Of n in time = c n^p."""
    fitted = [row for row in rows if row["rows"] >= 4096] or rows
    if len(fitted) < 2:
        return float("nan")
    return float(np.polyfit(np.log([row["rows"] for row in fitted]), np.log([row["ms"] for row in fitted]), 1)[0])


def plain_table(title: str, rows: Sequence[dict[str, float]]) -> Table:
    table = Table(title=title)
    for name in rows[0]:
        table.add_column(name.replace("_", " "), justify="right")
    for row in rows:
        table.add_row(*(f"{row[name]:.4g}" if name in row else "" for name in rows[0]))
    return table


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--caps", type=int, nargs="+", default=CAPS)
    parser.add_argument("--samples", type=int, default=4096)
    parser.add_argument("--sizes", type=int, nargs="+", default=SIZES, help="numbers of rows that are timed")
    parser.add_argument("--lengths", type=Path, help="JSON file of measured lengths instead of the built-in quantiles")
    parser.add_argument("--json", type=Path, help="write every figure here")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str]) -> int:
    options, console = parse(arguments), Console(width=150)
    quantiles = read_quantiles(options.lengths) if options.lengths else np.array(R1_QUANTILES, np.float64)
    cases = [case for distribution in DISTRIBUTIONS for cap in options.caps for factor in CAPACITIES
             for case in measure(distribution, cap, factor, drawn(
                 distribution, cap, options.samples, np.random.default_rng(cap), quantiles))]
    console.print(quality_table(cases))
    middle = sorted(options.caps)[len(options.caps) // 2]

    def r1(count: int) -> Ints:
        return drawn("r1", middle, count, np.random.default_rng(1), quantiles)

    buckets, speed = buckets_report(r1(options.samples), middle), speed_report(r1, options.sizes, middle)
    console.print(plain_table(f"bucketed: r1 at cap {middle}", buckets))
    console.print(plain_table(f"speed: r1 at cap {middle}, capacity 4x, 8 ranks", speed))
    console.print(f"time grows as n^{exponent(speed):.2f} (n log n is n^1.08 here); "
                  f"{sum(case.missed for case in cases)} of {len(cases)} plans miss a target")
    if options.json:
        options.json.write_text(json.dumps({"cases": [asdict(case) for case in cases], "buckets": buckets,
                                            "speed": speed, "exponent": exponent(speed)}))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
