"""The table at the end of a run: the start, and each iteration's compressed and expanded checkpoint.

The last compressed checkpoint is the run's SIRI-low (short answers), the last expanded one its SIRI-high (accuracy),
as the paper names its released models.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Group
from rich.table import Table
from rich.text import Text

from siri_megatron.errors import DataError
from siri_megatron.observe.render import number, percent

Evaluation = Mapping[str, Any]
_TAG = re.compile(r"iter(\d+)-(compressed|expanded)")
_STAGE = re.compile(r"stage(\d+)")


def load_evaluations(directory: Path) -> list[dict[str, Any]]:
    """The evaluations of a run in the order of training; none if there is no such directory.

    Raises:
        DataError: a file is not an evaluation.
    """
    found = [load_evaluation(path) for path in directory.glob("*.json")]
    return sorted(found, key=lambda evaluation: tag_order(evaluation["tag"]))


def tag_order(tag: str) -> tuple[int, int, str]:
    """Sort key: `start`, then iterations (compressed before expanded) or stages, then tags of other makers by name."""
    if stage := _STAGE.fullmatch(tag):
        return int(stage[1]), 0, tag
    match = _TAG.fullmatch(tag)
    if match:
        return int(match[1]), int(match[2] == "expanded"), tag
    return (0, 0, tag) if tag == "start" else (10**9, 0, tag)


def siri_names(tags: Sequence[str]) -> dict[str, str]:
    """tag -> SIRI-low or SIRI-high, for those tags that have such a name."""
    names: dict[str, str] = {}
    for ending, name in (("compressed", "SIRI-low"), ("expanded", "SIRI-high")):
        matching = [tag for tag in tags if (match := _TAG.fullmatch(tag)) and match[2] == ending]
        if matching:
            names[max(matching, key=tag_order)] = name
    return names


def summary_table(evaluations: Sequence[Evaluation]) -> Group:
    """Accuracy with its 95% interval, tokens, truncation, and accuracy when answers are cut at tighter budgets."""
    budgets = sorted({int(budget) for evaluation in evaluations for budget in evaluation["budgets"]})
    names = siri_names([evaluation["tag"] for evaluation in evaluations])
    table = Table(title="Checkpoints", title_justify="left", box=box.SIMPLE_HEAD)
    for heading in ("checkpoint", "", "accuracy", "tokens", "", "truncated", *(f"@{budget}" for budget in budgets)):
        table.add_column(heading, justify="left" if heading == "checkpoint" else "right", no_wrap=True)
    for evaluation in evaluations:
        name = names.get(evaluation["tag"], "")
        table.add_row(*_cells(evaluation, evaluations[0], name, budgets), style="bold" if name else None)
    return Group(table, Text(_caption(evaluations)))


def _cells(evaluation: Evaluation, start: Evaluation, name: str, budgets: Sequence[int]) -> list[str]:
    at = {int(budget): entry["accuracy"] for budget, entry in evaluation["budgets"].items()}
    return [evaluation["tag"], name, _accuracy(evaluation), number(evaluation["mean_tokens"]),
            _change(evaluation, start), percent(evaluation["truncated"]),
            *(percent(at.get(budget)) for budget in budgets)]


def _accuracy(evaluation: Evaluation) -> str:
    """`71.2% ±3.1`: with the half-width of its interval."""
    ci = evaluation.get("accuracy_ci")
    return percent(evaluation["accuracy"]) + (f" ±{50 * (ci[1] - ci[0]):.1f}" if ci else "")


def _change(evaluation: Evaluation, start: Evaluation) -> str:
    """Change of the mean tokens against the first row."""
    if evaluation is start or not start["mean_tokens"]:
        return ""
    return f"{evaluation['mean_tokens'] / start['mean_tokens'] - 1:+.0%}"


def _caption(evaluations: Sequence[Evaluation]) -> str:
    if not evaluations:
        return "no evaluations"
    last = evaluations[-1]
    return (f"{last['problems']} held-out problems x {last['samples']} samples; "
            "±: 95% interval; @B: answers cut at B tokens")


def load_evaluation(path: Path) -> dict[str, Any]:
    """One evaluation.

    Raises:
        DataError: the file is none.
    """
    needed = {"tag", "accuracy", "mean_tokens", "truncated", "budgets", "problems", "samples"}
    try:
        data = json.loads(path.read_text())
    except ValueError as error:
        raise DataError(f"{path} is not JSON: {error}", fix="remove it; `siri eval` makes it again") from None
    missing = sorted(needed - set(data)) if isinstance(data, dict) else sorted(needed)
    if missing:
        raise DataError(f"{path} lacks {missing}", rule="evaluations/TAG.json is written by an evaluation",
                        fix="remove it; `siri eval` makes it again")
    return dict(data)
