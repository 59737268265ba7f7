"""Studies made up with known effects, written without runs. Not a test."""

from __future__ import annotations

import csv
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from siri_megatron.study.data import Row, Study

STEPS, EVERY, CYCLE = 72, 12, 24
TIERS = tuple(f"k={k}" for k in range(3, 10))
HARD = ("k=8", "k=9")
BUDGETS = (32, 48, 64, 128)
FOUR = ("fixed", "siri", "monotone", "closed-loop")
SCENE: dict[str, dict[str, float]] = {
    "fixed": {"accuracy": 0.84, "tokens": 48, "hard": 0.70},
    "siri": {"accuracy": 0.84, "tokens": 36, "hard": 0.70},
    "monotone": {"accuracy": 0.70, "tokens": 30, "hard": 0.30},
    "closed-loop": {"accuracy": 0.85, "tokens": 38, "hard": 0.72}}
"""What each arm ends at, in the mean."""
START = {"accuracy": 0.40, "tokens": 70.0, "hard": 0.20}
GAINS = {"accuracy": (0.10, 0.05), "tokens": (-6.0, -3.0)}
"""What SIRI-like arms gain from one expanded evaluation to the next."""


def tag(arm: str, step: int) -> str:
    if step == 0:
        return "start"
    if arm not in ("siri", "closed-loop"):
        return f"step{step}"
    return f"iter{math.ceil(step / CYCLE)}-{'expanded' if step % CYCLE == 0 else 'compressed'}"


def cap(arm: str, step: int) -> int:
    if arm == "monotone":
        return round(128 - 96 * step / STEPS)
    return 128 if arm == "fixed" else round(80 + 48 * math.cos(2 * math.pi * (step + 1) / CYCLE))


def path(start: float, end: float, gains: Sequence[float]) -> dict[int, float]:
    """Evaluated step -> mean, such that those at 24, 48, 72 differ by the gains; between them on a line."""
    knots = {0: start, 24: end - gains[1] - gains[0], 48: end - gains[1], 72: end}
    return {step: float(np.interp(step, list(knots), list(knots.values()))) for step in range(0, STEPS + 1, EVERY)}


def made(seeds: Sequence[int] = tuple(range(1, 13)), *, noise: float = 0.02, draw: int = 0, warm_starts: int = 1,
         steps: bool = True, scene: Mapping[str, Mapping[str, float]] = SCENE,
         gains: Mapping[str, Sequence[float]] = GAINS) -> Study:
    """A study whose arms end where `scene` says. What the arms of a seed share varies five times as much as a run.

    Args:
        noise: standard deviation of a run's accuracy, and, times 100, of its tokens.
        draw: of the random numbers.
        steps: also make the training steps, which no decision reads.
    """
    generator = np.random.default_rng(draw)
    evaluations: list[Row] = []
    trained: list[Row] = []
    for number, seed in enumerate(seeds):
        shared, warm = generator.normal(0, 5 * noise, 2), number * warm_starts // len(seeds) + 1
        for arm, ends in scene.items():
            curves = {key: path(START[key], ends[key], gains[key]) for key in ("accuracy", "tokens")}
            evaluations += run_evaluations({"arm": arm, "seed": seed, "warm": warm}, ends["hard"], curves, shared,
                                           noise, generator)
            trained += run_steps({"arm": arm, "seed": seed}, curves, generator) if steps else []
    return Study(in_order(evaluations), in_order(trained))


def run_evaluations(run: Row, hard: float, curves: Mapping[str, Mapping[int, float]], shared: Any, noise: float,
                    generator: np.random.Generator) -> list[Row]:
    found, sampled = [], 0.0
    for step in range(0, STEPS + 1, EVERY):
        own = generator.normal(0, noise, 3) if step else np.zeros(3)
        accuracy = curves["accuracy"][step] + shared[0] + own[0]
        tokens = curves["tokens"][step] + 20 * shared[1] + 100 * own[1]
        hard_now = (hard if step else START["hard"]) + shared[0] + own[2]
        sampled += EVERY * 128 * max(1.0, tokens) if step else 0
        found.append(run | {
            "step": step, "tag": tag(run["arm"], step), "sampled_tokens": sampled, "train_seconds": sampled / 8000,
            "accuracy": accuracy, "mean_tokens": tokens, "truncated": 0.02,
            **{f"acc@{budget}": accuracy * (1 - math.exp(-budget / 20)) for budget in BUDGETS},
            **{f"acc:{tier}": hard_now if tier in HARD else accuracy for tier in TIERS},
            **{f"tokens:{tier}": tokens + index for index, tier in enumerate(TIERS)}, "problems": 500.0})
    return found


def run_steps(run: Row, curves: Mapping[str, Mapping[int, float]], generator: np.random.Generator) -> list[Row]:
    found = []
    for step in range(STEPS):
        accuracy, tokens = (float(np.interp(step, list(curve), list(curve.values()))) for curve in curves.values())
        found.append(run | {
            "step": step, "cap": float(cap(run["arm"], step)), "cycle": float(step // CYCLE),
            "phase": "compression" if step % CYCLE < CYCLE / 2 else "expansion", "tokens": 128 * tokens,
            "accuracy": accuracy + generator.normal(0, 0.03), "accuracy_untruncated": 0.9,
            "truncated": 0.4 - 0.4 * cap(run["arm"], step) / 128 + generator.uniform(0, 0.05),
            "mean_tokens": tokens + generator.normal(0, 1), "entropy": 0.4, "step_s": 3.0})
    return found


def in_order(rows: Sequence[Row]) -> list[Row]:
    return sorted(rows, key=lambda row: (row["arm"], row["seed"], row["step"]))


def written(directory: Path, study: Study) -> Path:
    """As `siri study` writes it."""
    for name, rows in (("evaluations", study.evaluations), ("steps", study.steps)):
        write(directory / f"{name}.csv", rows)
    return directory


def write(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def without(study: Study, keep: Any) -> Study:
    """The rows for which keep(row) holds."""
    return Study([row for row in study.evaluations if keep(row)], [row for row in study.steps if keep(row)])
