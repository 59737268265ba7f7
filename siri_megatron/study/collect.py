"""What the runs of a study wrote, as two tables: an evaluation a row, a training step a row.

Columns of `evaluations.csv`: arm, seed, warm, step (of the run, before it), tag, sampled_tokens and train_seconds
up to there, accuracy, mean_tokens, truncated, acc@B for every budget, acc:TIER and tokens:TIER, problems.
Columns of `steps.csv`: arm, seed, and STEP_COLUMNS.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from siri_megatron.errors import DataError
from siri_megatron.files import write_text
from siri_megatron.report.read import RunData, read_run
from siri_megatron.study.plan import StudyPlan
from siri_megatron.study.schedule import Job, jobs

STEP_COLUMNS = ("step", "cap", "phase", "cycle", "tokens", "accuracy", "accuracy_untruncated", "truncated",
                "mean_tokens", "entropy", "step_s")
TRAINING_S = ("generation_s", "verification_s", "planning_s", "training_s", "push_s")
"""What a step spends on training; evaluation, checkpoints and exports are left out."""
Row = Mapping[str, Any]


def collect(plan: StudyPlan, place: Path, out: Path) -> None:
    """Write evaluations.csv and steps.csv into `out`.

    Raises:
        DataError: a run is missing, or not whole.
    """
    runs = [(job, _whole(read_run(place / job.name))) for job in jobs(plan) if job.arm]
    runs.sort(key=lambda pair: (list(plan.arms).index(pair[0].arm), pair[0].seed))
    write_table(out / "evaluations.csv", [row for job, run in runs for row in evaluation_rows(job, run)])
    write_table(out / "steps.csv", [{"arm": job.arm, "seed": job.seed} | {key: record.get(key) for key in STEP_COLUMNS}
                                    for job, run in runs for record in run.records])


def _whole(run: RunData) -> RunData:
    if run.result.get("status") != "success" or len(run.records) != run.result.get("steps"):
        raise DataError(f"{run.root}: {run.result.get('status', 'no result')}, {len(run.records)} of "
                        f"{run.result.get('steps')} steps", rule="a study compares whole runs",
                        fix="start the study again: it goes on")
    return run


def evaluation_rows(job: Job, run: RunData) -> list[Row]:
    """The evaluations of a run in order of training."""
    rows = [_evaluation_row(job, run, evaluation) for evaluation in run.evaluations]
    return sorted(rows, key=lambda row: row["step"])


def _evaluation_row(job: Job, run: RunData, evaluation: Mapping[str, Any]) -> Row:
    step = int(evaluation["weight_version"])
    before = [record for record in run.records if record["step"] < step]
    return {
        "arm": job.arm, "seed": job.seed, "warm": job.warm, "step": step, "tag": evaluation["tag"],
        "sampled_tokens": sum(record["tokens"] for record in before),
        "train_seconds": round(sum(record.get(key) or 0 for record in before for key in TRAINING_S), 2),
        **{key: evaluation[key] for key in ("accuracy", "mean_tokens", "truncated")},
        **{f"acc@{budget}": at["accuracy"] for budget, at in evaluation["budgets"].items()},
        **{f"acc:{tier}": at["accuracy"] for tier, at in evaluation["tiers"].items()},
        **{f"tokens:{tier}": at["mean_tokens"] for tier, at in evaluation["tiers"].items()},
        "problems": evaluation["problems"]}


def write_table(path: Path, rows: Sequence[Row]) -> None:
    """Write CSV; floats have 6 significant digits, so that equal runs make equal files."""
    text = io.StringIO()
    writer = csv.DictWriter(text, list(dict.fromkeys(key for row in rows for key in row)), lineterminator="\n")
    writer.writeheader()
    writer.writerows({key: f"{value:.6g}" if isinstance(value, float) else value for key, value in row.items()}
                     for row in rows)
    write_text(path, text.getvalue())
