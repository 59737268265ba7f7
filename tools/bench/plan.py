"""Is `siri plan` right? Predicted over measured, part by part: `python tools/bench/plan.py [CONFIG] [--run RUN]`.

Without --run it does what a user does: `siri plan CONFIG --calibrate` (15 short steps at three caps), then one whole
cycle of CONFIG, trained by the usual way, and compares

    ahead    the plan made before the cycle: its lengths are those of the calibration's responses. The cycle is run with
             a learning rate of nearly zero, for a plan does not foresee what the policy will learn
    given    the same rates, with the lengths that each step of the cycle then had

With --run RUN: no new run; `given` from the even steps to the odd ones, `ahead` from the first half to the second.
Target: the seconds of a cycle within 15 %, and so within each third of the caps.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from rich import box
from rich.console import Console
from rich.table import Table

from siri_megatron import config as configs
from siri_megatron.estimate.calibration import (
    Calibration,
    MeasuredStep,
    calibrate,
    generation_work,
    training_work,
)
from siri_megatron.estimate.setup import Setup
from siri_megatron.estimate.step import at_cap
from siri_megatron.launch.calibrate import fingerprint, measured_setup, read_calibration
from siri_megatron.launch.measured_run import measured_steps, outside_seconds
from siri_megatron.paths import RunDir

PARTS = ("generation", "training", "push", "rest", "step")
TARGET = 0.15
FROZEN = "optimizer.lr=1e-12"
Seconds = Mapping[str, float]


def main(args: argparse.Namespace) -> int:
    console = Console(width=110)
    if args.run:
        paths = RunDir(args.run)
        setup, steps = measured_setup(configs.load(paths.config)), measured_steps(paths)[slice(*args.steps)]
        outside, half = outside_seconds(paths), len(steps) // 2
        even, first = (calibrate(setup, some, outside, machine=fingerprint()) for some in (steps[::2], steps[:half]))
        missed = show(console, "given: odd steps with their own lengths, from the even ones", [
            (step.cap, given(setup, even, step), measured(step)) for step in steps[1::2]])
        return missed + show(console, "ahead: the second half planned from the first", [
            (step.cap, ahead(setup, first, step.cap), measured(step)) for step in steps[half:]])
    place = configs.load(args.config).runs_dir
    siri("plan", str(args.config), "--calibrate", "--json", FROZEN)
    siri("train", str(args.config), "--fresh", "name=plan-cycle", "budget.cycles=1", "evaluation.at_start=false",
         FROZEN)
    paths = RunDir(place / "plan-cycle")
    found = read_calibration(place / "calibration.json", named=True)
    assert found
    setup, steps = measured_setup(configs.load(paths.config)), measured_steps(paths)
    missed = show(console, "ahead: planned before the cycle", [
        (step.cap, ahead(setup, found, step.cap), measured(step)) for step in steps])
    return missed + show(console, "given: with the lengths that the steps then had", [
        (step.cap, given(setup, found, step), measured(step)) for step in steps])


def ahead(setup: Setup, found: Calibration, cap: int) -> Seconds:
    """What the plan says of a step at this cap."""
    machine = replace(setup.machine, rates=found.rates)
    step = at_cap(replace(setup, machine=machine, lengths=found.lengths, kept=found.kept), cap)
    parts = {"generation": step.generation_s, "training": step.training_s, "push": step.push_s,
             "rest": step.verification_s + step.overhead_s}
    return parts | {"step": step.step_s}


def given(setup: Setup, found: Calibration, step: MeasuredStep) -> Seconds:
    """The rates with a step's own rollouts."""
    rates, planned = vars(found.rates), ahead(setup, found, step.cap)
    parts = {name: sum(units * rates[rate] for rate, units in work(setup, step).items())
             for name, work in (("generation", generation_work), ("training", training_work))}
    parts |= {name: planned[name] for name in ("push", "rest")}
    return parts | {"step": sum(parts.values())}


def measured(step: MeasuredStep) -> Seconds:
    rest = sum(step.seconds[name] for name in ("verification", "planning", "other"))
    parts = {name: step.seconds[name] for name in ("generation", "training", "push")} | {"rest": rest}
    return parts | {"step": sum(parts.values())}


def show(console: Console, title: str, steps: Sequence[tuple[int, Seconds, Seconds]]) -> int:
    """Ratios over all steps and over each third of the caps; the first step warms up. 1 if the step is off target."""
    steps = sorted(steps[1:], key=lambda step: step[0])
    thirds = [steps[len(steps) * third // 3:len(steps) * (third + 1) // 3] for third in range(3)]
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD)
    for head in ("part", "predicted s", "measured s", "ratio of sums", "median ratio",
                 *(f"caps {part[0][0]}–{part[-1][0]}" for part in thirds)):
        table.add_column(head, justify="left" if head == "part" else "right")
    for name in PARTS:
        predicted, real = (sum(step[side][name] for step in steps) for side in (1, 2))
        ratios = (predicted / real, *(median_ratio(part, name) for part in (steps, *thirds)))
        table.add_row(name, f"{predicted:.2f}", f"{real:.2f}", *(f"{ratio:.3f}" for ratio in ratios))
    console.print(table)
    off = abs(median_ratio(steps, "step") - 1)
    console.print(f"step: off by {off:.1%} (target {TARGET:.0%})\n")
    return int(off > TARGET)


def median_ratio(steps: Sequence[tuple[int, Seconds, Seconds]], name: str) -> float:
    return statistics.median(predicted[name] / real[name] for _, predicted, real in steps if real[name] > 0)


def siri(*arguments: str) -> None:
    subprocess.run([Path(sys.executable).parent / "siri", *arguments], check=True, stdout=subprocess.DEVNULL)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", type=Path, nargs="?", default=Path("configs/tiny.yaml"))
    parser.add_argument("--run", type=Path, help="a finished run, instead of new ones")
    parser.add_argument("--steps", type=int, nargs=2, default=(None, None), metavar=("FIRST", "END"),
                        help="--run: only these steps")
    sys.exit(main(parser.parse_args()))
