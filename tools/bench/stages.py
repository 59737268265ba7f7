"""Where the time of a step goes: `make bench` (or `python tools/bench/stages.py [CAP ...]`).

Runs configs/bench-0.8m.yaml with the real stack at each cap (128 and 512 by default) and prints the table of the stages
and its ratio: the share of a step outside generation and training. Target: 10% or less.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from model import write_bench_model
from rich.console import Console

from siri_megatron.observe import jsonl
from siri_megatron.observe.stages import stage_report, stage_table

CONFIG = Path("configs/bench-0.8m.yaml")
WARM_UP = 2  # steps that are left out: first shapes, first connections, first weights
TARGET = 0.10


def run(cap: int) -> Path:
    """One run at a fixed cap; returns its directory."""
    name = f"bench-0.8m-{cap}"
    overrides = [f"name={name}", f"budget.l_max={cap}", f"budget.l_min={cap}", f"evaluation.budgets=[{cap}]",
                 f"rollout.budget_grid=[{cap // 2},{cap}]"]
    subprocess.run([str(Path(sys.executable).parent / "siri"), "train", str(CONFIG), "--fresh", *overrides], check=True)
    return Path("runs") / name


def main(caps: list[int]) -> int:
    console = Console()
    write_bench_model(Path("runs/bench-model"))
    shares = {}
    for cap in caps:
        directory = run(cap)
        records = [record for record in jsonl.read(directory / "metrics.jsonl") if record["step"] >= WARM_UP]
        events = [event for event in jsonl.read(directory / "events.jsonl") if (event["step"] or 0) > WARM_UP]
        report = stage_report(records, events)
        console.print(stage_table(report))
        shares[cap] = report.outside_plain_steps
    for cap, share in shares.items():
        console.print(f"cap {cap}: {share:.1%} of a step is outside generation and training (target <= {TARGET:.0%})")
    return 0


if __name__ == "__main__":
    sys.exit(main([int(cap) for cap in sys.argv[1:]] or [128, 512]))
