"""What the learner costs over a bare Megatron loop, and what packing buys: `python tools/bench/learner.py [options]`.

For each cap, response lengths are drawn (lengths.py), written as a ledger step, and three train steps are timed in
turn, in one process, on the same rows, split into the same optimizer steps:

    ours    plan_step + Learner.train_step: planning, reading the rows out of the ledger, building packed batches
            (padded to a multiple of 8), forward, backward, entropy and statistics, clipping, AdamW, metrics
    bare    bare.py: megatron-core's forward-backward and optimizer over prepared tensors without padding, in the same
            micro-batches; nothing else. Same model code, attention, DDP, loss and optimizer, as a second model
    padded  Learner.train_step on the same rows in the order of the ledger, each micro-batch padded to its longest row,
            with as many rows as the capacity holds: what one does without packing

Tokens are those fed to the model, without padding. ratio = ours over bare, gain = ours over padded, each the median
over pairs that run right after each other. Target: ratio >= 0.95 at every cap.

A micro-batch has the capacity of a run whose largest cap is the largest one here: --micro-tokens at every cap.
"""

from __future__ import annotations

import argparse
import multiprocessing
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from lengths import DISTRIBUTIONS, GROUP, PROMPT, Step, quantile_lengths, read_quantiles, response_lengths, write_step
from model import SIZES, write_bench_model
from rich.console import Console
from rich.table import Table

from siri_megatron.batching.lengths import round_up
from siri_megatron.batching.micro_batches import MicroBatch, OptimizerStep
from siri_megatron.batching.plan import StepPlan, plan_step
from siri_megatron.budget.method import Method
from siri_megatron.config import AlgorithmConfig, BatchingConfig, LearnerConfig, ModelConfig, OptimizerConfig
from siri_megatron.learner.architecture import read_config
from siri_megatron.learner.settings import LearnerSettings
from siri_megatron.paths import RunDir

CAPS = (64, 128, 256, 512, 1024)
TARGET = 0.95
CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}


@dataclass(frozen=True)
class Row:
    """A line of the table. Speeds are real tokens a second."""

    cap: int
    mean_length: float
    fill: float
    """Real tokens over tokens computed, in our micro-batches."""
    ours: float
    bare: float
    padded: float
    ratio: float
    """ours / bare"""
    gain: float
    """ours / padded"""


class Bench:
    """One rank's learner and bare loop. Entered `megatron_runtime()` before."""

    def __init__(self, options: argparse.Namespace, control: Any) -> None:
        from bare import BareLoop  # torch and megatron

        from siri_megatron.learner.learner import Learner

        self.options, self.clock = options, CLOCKS[options.clock]
        self.batching = BatchingConfig(tokens_per_micro_batch=options.micro_tokens)
        self.settings = bench_settings(options)
        self.learner = Learner(self.settings, control)
        self.bare = BareLoop(self.settings, self.learner.architecture)

    def plan(self, step: Step) -> StepPlan:
        """As `run.Run` makes it."""
        layout, options = self.settings.layout, self.options
        method = Method.of(self.settings.algorithm, self.settings.optimizer)
        return plan_step(step.lengths, step.budget, self.settings.algorithm, self.batching, method=method, dp=layout.dp,
                         multiple=layout.micro_batch_multiple, max_prompt=PROMPT[1],
                         l_max=max(options.caps))

    def measure(self, step: Step) -> Row:
        """All three sides at one cap."""
        plan, naive = self.plan(step), padded_plan(self.plan(step))
        packs = self.bare.packs(step, plan)
        sides: list[Callable[[], Any]] = [
            lambda: self.learner.train_step(self.plan(step), step.rows), lambda: self.bare.train(packs),
            lambda: self.learner.train_step(naive, step.rows)]
        for side in sides:
            side()  # warm-up
        ours, bare = self._pairs(sides[0], sides[1], self.options.repeats)
        beside, padded = self._pairs(sides[0], sides[2], max(1, self.options.repeats // 3))
        tokens = sum(plan.lengths[row] for micro in plan.micro_batches() for row in micro.rows)
        speed = [tokens / statistics.median(seconds) for seconds in (ours, bare, padded)]
        return Row(step.budget.cap, float(np.mean(plan.lengths)), plan.stats()["fill"], *speed,
                   ratio=_median_ratio(bare, ours), gain=_median_ratio(padded, beside))

    def _pairs(self, one: Callable[[], Any], other: Callable[[], Any], count: int) -> tuple[list[float], list[float]]:
        """Seconds of both, in turn: A B A B."""
        pairs = [(self._seconds(one), self._seconds(other)) for _ in range(count)]
        return [first for first, _ in pairs], [second for _, second in pairs]

    def _seconds(self, side: Callable[[], Any]) -> float:
        import torch.distributed as dist
        dist.barrier()
        start = self.clock()
        side()
        dist.barrier()
        return self.clock() - start


def bench_settings(options: argparse.Namespace) -> LearnerSettings:
    layout = LearnerConfig(tp=options.tp, pp=options.pp, dp=options.dp, pin_cores=True)
    return LearnerSettings(
        ModelConfig(path=options.model), layout, OptimizerConfig(lr=1e-6), AlgorithmConfig(), temperature=1.0,
        mode="packed", tokens_per_micro_batch=options.micro_tokens, context=PROMPT[1] + max(options.caps), seed=1)


def make_step(options: argparse.Namespace, root: Path, cap: int) -> Step:
    """A ledger step of about --tokens tokens under a cap: at least two groups, one for each optimizer step."""
    rng = np.random.default_rng(cap)
    draw = (partial(quantile_lengths, read_quantiles(options.lengths)) if options.lengths
            else partial(response_lengths, options.distribution))
    mean = draw(cap, 4096, np.random.default_rng(0)).mean() + sum(PROMPT) / 2
    groups = max(2, round(options.tokens / mean / GROUP))
    vocab = read_config(options.model)["vocab_size"]
    return write_step(root / f"cap-{cap}", cap, draw(cap, groups * GROUP, rng), vocab, rng)


def padded_plan(plan: StepPlan) -> StepPlan:
    """The same optimizer steps without packing: rows in the ledger's order, padded to the longest beside them."""
    return replace(plan, mode="bucketed", optimizer_steps=tuple(
        OptimizerStep(_dealt(_padded(plan, part), len(part.ranks))) for part in plan.optimizer_steps))


def _padded(plan: StepPlan, part: OptimizerStep) -> list[MicroBatch]:
    """Rows one after another into a micro-batch while rows x longest stays within the capacity."""
    micros: list[MicroBatch] = []
    for row in sorted(row for rank in part.ranks for micro in rank for row in micro.rows):
        last = micros[-1] if micros else MicroBatch((), 0)
        width = max(last.width, round_up(plan.lengths[row]))
        if micros and (len(last.rows) + 1) * width <= plan.capacity:
            micros[-1] = MicroBatch((*last.rows, row), width, len(last.rows) + 1)
        else:
            micros.append(MicroBatch((row,), round_up(plan.lengths[row])))
    return micros


def _dealt(micros: list[MicroBatch], dp: int) -> tuple[tuple[MicroBatch, ...], ...]:
    """Round the table, with dummies so that every rank has as many."""
    filled = [*micros, *[MicroBatch((), 8)] * (-len(micros) % dp)]
    return tuple(tuple(filled[rank::dp]) for rank in range(dp))


def _median_ratio(seconds: Sequence[float], of: Sequence[float]) -> float:
    return statistics.median(one / other for one, other in zip(seconds, of, strict=True))


def run_rank(options: argparse.Namespace, directory: Path, rank: int) -> list[Row]:
    """One rank's part of the benchmark; the same rows of the table on every rank, with its own clock."""
    from siri_megatron.learner.control import ControlPlane
    from siri_megatron.learner.runtime import megatron_runtime

    layout = bench_settings(options).layout
    with ControlPlane.open(RunDir(directory), rank, layout.world_size, layout) as control, megatron_runtime():
        bench = Bench(options, control)
        rows = [bench.measure(make_step(options, directory / f"ledger-{rank}", cap)) for cap in options.caps]
        bench.learner.close()
    return rows


@contextmanager
def other_ranks(options: argparse.Namespace, directory: Path) -> Iterator[None]:
    """The ranks beside this process, which is rank 0."""
    context = multiprocessing.get_context("spawn")
    ranks = [context.Process(target=run_rank, args=(options, directory, rank), daemon=True)
             for rank in range(1, options.tp * options.pp * options.dp)]
    for process in ranks:
        process.start()
    try:
        yield
    finally:
        for process in ranks:
            process.join(20)
            process.kill()


def show(rows: list[Row], console: Console) -> None:
    table = Table(title="learner: real tokens a second")
    for name in ("cap", "mean length", "fill", "ours", "bare", "ratio", "padded", "gain"):
        table.add_column(name, justify="right")
    for row in rows:
        table.add_row(str(row.cap), f"{row.mean_length:.0f}", f"{row.fill:.3f}", f"{row.ours:,.0f}", f"{row.bare:,.0f}",
                      f"{row.ratio:.3f}", f"{row.padded:,.0f}", f"{row.gain:.2f}x")
    console.print(table)
    lowest = min(row.ratio for row in rows)
    console.print(f"ours over a bare Megatron loop: {lowest:.3f} at the worst cap (target >= {TARGET})")


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="the learner over a bare megatron-core loop, and over padding")
    parser.add_argument("--caps", type=int, nargs="+", default=CAPS)
    parser.add_argument("--distribution", choices=DISTRIBUTIONS, default="r1", help="of response lengths (lengths.py)")
    parser.add_argument("--lengths", type=Path, help="JSON list of measured lengths to draw from instead")
    parser.add_argument("--tokens", type=int, default=16384, help="tokens of a train step")
    parser.add_argument("--micro-tokens", type=int, default=4096, help="batching.tokens_per_micro_batch")
    parser.add_argument("--repeats", type=int, default=12, help="pairs timed at a cap")
    parser.add_argument("--clock", choices=CLOCKS, default="wall", help="cpu: process time, for a busy machine")
    parser.add_argument("--size", choices=SIZES, default="0.8m", help="of the model made for the benchmark")
    parser.add_argument("--model", type=Path, help="a Hugging Face directory instead")
    for name in ("tp", "pp", "dp"):
        parser.add_argument(f"--{name}", type=int, default=1)
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    options = parse(argv)
    if options.model is None:
        options.model = Path("runs") / f"bench-model-{options.size}"
        write_bench_model(options.model, options.size)
    with tempfile.TemporaryDirectory(prefix="bench-learner-") as directory, other_ranks(options, Path(directory)):
        rows = run_rank(options, Path(directory), 0)
    show(rows, Console())
    return 0


if __name__ == "__main__":
    sys.exit(main())
