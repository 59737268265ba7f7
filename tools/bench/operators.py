"""What a train step on CPU is made of: `python tools/bench/operators.py [options of learner.py]`, one cap at a time.

Profiles one `Learner.train_step` on one core and prints the share of matrix products, of attention and of all the rest,
and the speed of its matrix products beside that of a large square one. A ratio near 1 and a large share say that the
step cannot get much faster in this type: not by other batches, not by less of our own code.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

from learner import Bench, bench_settings, make_step, parse
from model import write_bench_model

PRODUCTS = ("aten::mm", "aten::addmm", "aten::bmm")
WARM_UP = 2
SQUARE = 2048


def kind(operator: str) -> str:
    """The row of the table that an operator belongs to."""
    if operator in PRODUCTS:
        return "matrix products"
    return "attention" if "scaled_dot_product" in operator else "the rest"


def profiled(step: Callable[[], Any]) -> tuple[dict[str, float], float]:
    """Seconds of each kind in one call of `step`, and the FLOP/s of its matrix products."""
    from torch.profiler import ProfilerActivity, profile
    with profile(activities=[ProfilerActivity.CPU], with_flops=True) as found:
        step()
    seconds: dict[str, float] = defaultdict(float)
    flops = 0
    for event in found.key_averages():
        seconds[kind(event.key)] += event.self_cpu_time_total / 1e6
        flops += event.flops if event.key in PRODUCTS else 0
    return seconds, flops / seconds["matrix products"]


def square_product() -> float:
    """FLOP/s of a large float32 matrix product on this core: the best of five."""
    import torch
    one = torch.randn(SQUARE, SQUARE)
    seconds = []
    for _ in range(5):
        start = time.perf_counter()
        one @ one
        seconds.append(time.perf_counter() - start)
    return 2 * SQUARE ** 3 / min(seconds)


def main(argv: list[str] | None = None) -> int:
    options = parse(argv)
    if options.model is None:
        options.model = Path("runs") / f"bench-model-{options.size}"
        write_bench_model(options.model, options.size)
    from siri_megatron.learner.control import ControlPlane
    from siri_megatron.learner.runtime import megatron_runtime
    from siri_megatron.paths import RunDir

    layout = bench_settings(options).layout
    with tempfile.TemporaryDirectory(prefix="bench-operators-") as name, ControlPlane.open(
            RunDir(Path(name)), 0, layout.world_size, layout) as control, megatron_runtime():
        bench = Bench(options, control)
        for cap in options.caps:
            step = make_step(options, Path(name), cap)
            plan = bench.plan(step)
            for _ in range(WARM_UP):
                bench.learner.train_step(plan, step.rows)
            seconds, speed = profiled(lambda plan=plan, rows=step.rows: bench.learner.train_step(plan, rows))
            whole, best = sum(seconds.values()), square_product()
            shares = ", ".join(f"{name} {part / whole:.0%}" for name, part in seconds.items())
            print(f"cap {cap}: {shares}; GFLOP/s of its matrix products {speed / 1e9:.0f}, of a large square one "
                  f"{best / 1e9:.0f}: ratio {speed / best:.2f}")
        bench.learner.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
