"""What running ahead buys: `python tools/bench/lag.py [CAP] [LAG]` (128, 1 by default).

One engine on one core and one learner on another, on configs/bench-0.8m.yaml; three runs of the real stack:

    train            both at once, the engine `lag` steps ahead               step_s
    --replay         the learner alone, on the ledger of that run              training_s
    --rollout-only   the engine alone, the same prompts and caps               generation_s

Prints step_s over the larger of the other two, each a median over the steps after the warm-up. Target: 1.1 or less. A
synchronous run would take their sum. On a machine that does other things the three runs do not see the same one, so a
second ratio is from within the first run: its time over that in which the busier side worked (1: it never waited).
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from statistics import median
from typing import Any

from model import write_bench_model

from siri_megatron.observe import jsonl

CONFIG = "configs/bench-0.8m.yaml"
RUNS = Path("runs")
STEPS = 14
WARM_UP = 3
"""Steps that are left out: first shapes, first connections, and the steps before the engine is ahead."""
TARGET = 1.1


def siri(*arguments: str) -> None:
    subprocess.run([str(Path(sys.executable).parent / "siri"), "train", *arguments], check=True)


def settings(cap: int, lag: int) -> list[str]:
    return [f"budget.l_max={cap}", f"budget.l_min={cap}", f"budget.cycle_steps={STEPS}",
            f"rollout.budget_grid=[{cap // 2},{cap}]", f"evaluation.budgets=[{cap}]", f"rollout.lag={lag}",
            "rollout.prompts_per_step=16", "engines.count=1", "learner.pp=1", "checkpoint.every_steps=100",
            # The policy stays what it is, so that the engine alone, which gets no new weights, has the same lengths.
            "optimizer.lr=1e-9"]


def usual(run: str, key: str) -> float:
    """Seconds of a step after the warm-up, the median; the last step has nothing beside it."""
    records: list[dict[str, Any]] = jsonl.read(RUNS / run / "metrics.jsonl")
    return median(record[key] for record in records[WARM_UP:-1])


def within(run: str) -> float:
    """Time from the end of the warm-up to the last step, over that in which the busier side worked."""
    spans = RUNS / run / "spans"
    of_step = {line["step"]: line["spans"] for line in jsonl.read(spans / "learner-0.jsonl")}
    start = min(begin for _, begin, *_ in of_step[WARM_UP])
    end = max(begin + seconds for _, begin, seconds, *_ in of_step[STEPS - 2])
    engine = [span for line in jsonl.read(spans / "engine-0.jsonl") for span in line["spans"]]
    training = [span for step in of_step.values() for span in step if span[0] == "training"]
    return (end - start) / max(overlap(engine, start, end), overlap(training, start, end))


def overlap(spans: list[list[Any]], start: float, end: float) -> float:
    """Seconds of some spans, which do not overlap each other, within a time."""
    return sum(max(0.0, min(begin + seconds, end) - max(begin, start)) for _, begin, seconds, *_ in spans)


def main(cap: int = 128, lag: int = 1) -> int:
    write_bench_model(RUNS / "bench-model")
    ahead, learner, engine = (f"bench-lag-{name}" for name in ("ahead", "learner", "engine"))
    common = settings(cap, lag)
    siri(CONFIG, "--fresh", f"name={ahead}", *common)
    siri(CONFIG, "--fresh", "--replay", str(RUNS / ahead), f"name={learner}", *common)
    siri(CONFIG, "--fresh", "--rollout-only", f"name={engine}", *common)
    step, training, generation = (usual(run, key) for run, key in (
        (ahead, "step_s"), (learner, "training_s"), (engine, "generation_s")))
    print(f"cap {cap}, lag {lag}: step {step:.2f} s, of it waiting {usual(ahead, 'generation_s'):.2f}, training "
          f"{usual(ahead, 'training_s'):.2f}, push {usual(ahead, 'push_s'):.2f}; "
          f"{usual(ahead, 'stale_tokens'):.0%} of the tokens a step old")
    print(f"alone: generation {generation:.2f} s, training {training:.2f} s, in turn {generation + training:.2f} s")
    print(f"step / max(generation, training) = {step / max(generation, training):.3f} (target <= {TARGET})")
    print(f"within the run: time / time of the busier side = {within(ahead):.3f}")
    return 0


if __name__ == "__main__":
    sys.exit(main(*map(int, sys.argv[1:])))
