"""The two tables of a study, read back and checked: evaluations and steps of every arm and seed.

Invariants (tests/study/test_study_data.py has them by these names):
- one_row: an arm has one evaluation a seed and step, and one record a seed and step.
- same_problems: the evaluations of a seed asked equally many problems, whichever arm they are of.
- whole: a figure is compared at the study's last step alone; a run that has no evaluation there is told apart.
"""

from __future__ import annotations

import csv
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from siri_megatron.errors import DataError

FIXED, SIRI, MONOTONE, CLOSED = "fixed", "siri", "monotone", "closed-loop"
ARMS = (FIXED, SIRI, MONOTONE, CLOSED)
"""The arms that decisions are about, in the order of tables and pictures."""
EVALUATION_COLUMNS = ("arm", "seed", "step", "tag", "sampled_tokens", "train_seconds", "accuracy", "mean_tokens",
                      "truncated", "problems")
STEP_COLUMNS = ("arm", "seed", "step", "cap", "phase", "cycle", "tokens", "accuracy", "accuracy_untruncated",
                "truncated", "mean_tokens", "entropy", "step_s")
TEXTS, WHOLE = ("arm", "tag", "phase"), ("seed", "step")

Row = dict[str, Any]
BySeed = dict[int, Row]


@dataclass(frozen=True)
class Study:
    """Rows by arm (as they come), seed and step. Numbers are floats (None: not recorded), seed and step are whole."""

    evaluations: Sequence[Row]
    steps: Sequence[Row]

    @property
    def arms(self) -> list[str]:
        """Those of the decisions first, then the others as they come."""
        found = dict.fromkeys(row["arm"] for row in self.evaluations)
        return [arm for arm in ARMS if arm in found] + [arm for arm in found if arm not in ARMS]

    @property
    def decided(self) -> list[str]:
        """The arms that decisions are about."""
        return [arm for arm in self.arms if arm in ARMS]

    @property
    def explored(self) -> list[str]:
        """The others."""
        return [arm for arm in self.arms if arm not in ARMS]

    @property
    def last_step(self) -> int:
        return max(row["step"] for row in self.evaluations)

    @property
    def warm_starts(self) -> dict[int, int]:
        """The warm start of each seed, where the tables say it."""
        return {row["seed"]: int(row["warm"]) for row in self.evaluations if row.get("warm") is not None}

    def of(self, arm: str) -> list[Row]:
        """Its evaluations, by seed and step."""
        return [row for row in self.evaluations if row["arm"] == arm]

    def seeds(self, arm: str) -> list[int]:
        return list(dict.fromkeys(row["seed"] for row in self.of(arm)))

    def at_step(self, arm: str, step: int) -> BySeed:
        return {row["seed"]: row for row in self.of(arm) if row["step"] == step}

    def end(self, arm: str) -> BySeed:
        """The evaluation after the study's last step, by seed."""
        return self.at_step(arm, self.last_step)

    def tagged(self, arm: str, tag: str) -> BySeed:
        return {row["seed"]: row for row in self.of(arm) if row["tag"] == tag}

    def cycles(self, arm: str) -> list[int]:
        """Numbers n for which there is an `iter<n>-expanded`."""
        found = (re.fullmatch(r"iter(\d+)-expanded", row["tag"]) for row in self.of(arm))
        return sorted({int(match[1]) for match in found if match})

    def names(self, prefix: str) -> list[str]:
        """What follows `acc:` (tiers) or `acc@` (budgets) in the columns, in natural order."""
        found = dict.fromkeys(key.removeprefix(prefix) for row in self.evaluations for key in row
                              if key.startswith(prefix))
        return sorted(found, key=natural)

    def unfinished(self) -> list[str]:
        """Runs without an evaluation at the last step, as `arm seed`."""
        return [f"{arm} {seed}" for arm in self.arms for seed in self.seeds(arm) if seed not in self.end(arm)]


def natural(name: str) -> list[tuple[int, float, str]]:
    """Sort key in which 2 stands before 10."""
    return [(0, float(part), "") if part.isdigit() else (1, 0.0, part) for part in re.split(r"(\d+)", name) if part]


def at_tokens(study: Study, arm: str, sampled: Mapping[int, float], *, above: bool = False) -> BySeed:
    """By seed, the arm's last evaluation at or below a number of sampled tokens.

    Args:
        sampled: seed -> tokens.
        above: the first at or above instead, or the run's last one if it never sampled so many.
    """
    found: BySeed = {}
    for seed, tokens in sampled.items():
        rows = [row for row in study.of(arm) if row["seed"] == seed]
        below = [row for row in rows if row["sampled_tokens"] <= tokens]
        beyond = [row for row in rows if row["sampled_tokens"] >= tokens]
        chosen = (beyond[:1] or rows[-1:]) if above else below[-1:]
        if chosen:
            found[seed] = chosen[0]
    return found


def read_study(directory: Path) -> Study:
    """Read `evaluations.csv` and `steps.csv`.

    Raises:
        DataError: a table is missing or has too few columns, a value is no number, a row is there twice, or the
            evaluations of a seed asked different numbers of problems.
    """
    evaluations = _table(directory / "evaluations.csv", EVALUATION_COLUMNS)
    steps = _table(directory / "steps.csv", STEP_COLUMNS)
    _same_problems(evaluations, directory / "evaluations.csv")
    return Study(evaluations, steps)


def _table(path: Path, columns: Sequence[str]) -> list[Row]:
    if not path.is_file():
        raise DataError(f"{path} is not there", rule="a study's tables are evaluations.csv and steps.csv",
                        fix="collect the study's runs first")
    with path.open(newline="") as file:
        reader = csv.DictReader(file)
        missing = [name for name in columns if name not in (reader.fieldnames or ())]
        if missing:
            raise DataError(f"{path} has no column {', '.join(missing)}", rule=f"it has {', '.join(columns)}",
                            fix="collect the study's runs again")
        rows = [_row(path, number, row) for number, row in enumerate(reader, 2)]
    return _one_row(path, rows)


def _row(path: Path, line: int, row: Mapping[str, str | None]) -> Row:
    try:
        return {key: _value(key, value) for key, value in row.items()}
    except ValueError as error:
        raise DataError(f"{path}, line {line}: {error}", rule="numbers, whole ones for seed and step",
                        fix="collect the study's runs again") from None


def _value(key: str, value: str | None) -> Any:
    if key in TEXTS:
        return value or ""
    if key in WHOLE:
        return int(value or "")
    number = float(value) if value else None
    if number is not None and not math.isfinite(number):
        raise ValueError(f"{key} is {value}")
    return number


def _one_row(path: Path, rows: Iterable[Row]) -> list[Row]:
    found: dict[tuple[str, int, int], Row] = {}
    for row in rows:
        key = row["arm"], row["seed"], row["step"]
        if key in found:
            raise DataError(f"{path}: {row['arm']}, seed {row['seed']}, step {row['step']} is there twice",
                            rule="an arm has one row a seed and step", fix="collect the study's runs again")
        found[key] = row
    if not found:
        raise DataError(f"{path} has no rows", rule="a study has runs", fix="collect the study's runs again")
    order = list(dict.fromkeys(arm for arm, _, _ in found))
    return sorted(found.values(), key=lambda row: (order.index(row["arm"]), row["seed"], row["step"]))


def _same_problems(rows: Sequence[Row], path: Path) -> None:
    first: dict[int, Row] = {}
    for row in rows:
        other = first.setdefault(row["seed"], row)
        if row["problems"] != other["problems"]:
            raise DataError(f"{path}: of seed {row['seed']}, {other['arm']} was asked {other['problems']:g} problems "
                            f"at step {other['step']}, {row['arm']} {row['problems']:g} at step {row['step']}",
                            rule="all evaluations of a seed ask the same problems",
                            fix="evaluate all arms with the same evaluation settings")
