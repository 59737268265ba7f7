"""Sample rollouts for people: held-out answers before and after, and training groups, right and wrong ones.

Invariants:
- bounded: at most MOST_EXAMPLES answers of evaluations and LEDGER_STEPS x GROUPS x ANSWERS of the ledger, each of at
    most `LONGEST` characters.
- same_prompts: an evaluation's examples are joined by prompt, so that each shows all checkpoints.
- wrong_ones_too: of a group the first answer of every outcome is shown before a second one of any.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from siri_megatron.errors import DataError
from siri_megatron.ledger.read import StepRows, closed_steps, open_step
from siri_megatron.paths import RunDir
from siri_megatron.report.read import RunData
from siri_megatron.report.text import fit

LONGEST = 6000
MOST_EXAMPLES = 120
LEDGER_STEPS, GROUPS, ANSWERS = 3, 4, 3

Row = dict[str, Any]


def examples(evaluations: Sequence[Mapping[str, Any]]) -> list[Row]:
    """A row a held-out prompt: its answers by every checkpoint, in order (first, last, and some between them)."""
    shown = _spread(evaluations, MOST_EXAMPLES // 8)
    prompts: dict[str, Row] = {}
    for evaluation in shown:
        for one in evaluation.get("examples", ()):
            row = prompts.setdefault(str(one.get("prompt")), _prompt(one))
            row["answers"].append(_answer(evaluation["tag"], str(one.get("response")), one))
    return list(prompts.values())[:8]


def _prompt(one: Mapping[str, Any]) -> Row:
    return {"prompt": fit(str(one.get("prompt")), LONGEST), "tier": fit(str(one.get("tier", "")), 100), "answers": [],
            "reference": fit(str(one.get("answer", "")), 500), "source": "held-out"}


def _answer(label: str, response: str, one: Mapping[str, Any]) -> Row:
    return {"label": label, "outcome": str(one.get("outcome")), "tokens": one.get("tokens"),
            "response": fit(response, LONGEST)}


def training(run: RunData) -> tuple[list[Row], list[str]]:
    """Rows of training prompts of the first, a middle and the last step, and notes about what could not be shown."""
    ledger, notes = RunDir(run.root).ledger, []
    chosen = _spread(closed_steps(ledger), LEDGER_STEPS)
    tokenizer = _tokenizer(run) if chosen else None
    if chosen and tokenizer is None:
        return [], ["training rollouts are not shown: no tokenizer.json in the run's exports or in model.path"]
    rows: list[Row] = []
    for step in chosen:
        try:
            rows += _of_step(open_step(ledger, step), step, tokenizer)
        except (DataError, OSError, ValueError) as error:
            notes.append(f"ledger step {step} cannot be shown: {str(error).splitlines()[0]}")
    return rows, notes


def _of_step(rows: StepRows, step: int, tokenizer: Any) -> list[Row]:
    found = []
    for members in pick_groups(rows.group, rows.outcome):
        first = rows.rollout(members[0])
        row = {"prompt": tokenizer.decode(first.prompt_ids, skip_special_tokens=False), "tier": first.tier,
               "answer": first.answer}
        answers = []
        for member in members:
            one = rows.rollout(member)
            cut = ", truncated" if one.truncated else ""
            facts = {"outcome": one.outcome, "tokens": len(one.response_ids)}
            answers.append(_answer(f"step {step}, cap {one.cap}{cut}",
                                   tokenizer.decode(one.response_ids, skip_special_tokens=True), facts))
        found.append(_prompt(row) | {"answers": answers, "source": f"training, step {step}"})
    return found


def pick_groups(group: NDArray[Any], outcome: NDArray[Any]) -> list[list[int]]:
    """Row numbers of some groups: those with the most kinds of outcome first, and of each one answer a kind first."""
    groups = [np.flatnonzero(group == number) for number in np.unique(group)]
    groups.sort(key=lambda rows: -len(set(outcome[rows])))
    return [_one_a_kind(rows.tolist(), outcome) for rows in groups[:GROUPS]]


def _one_a_kind(rows: Sequence[int], outcome: NDArray[Any]) -> list[int]:
    first = {outcome[row]: row for row in reversed(rows)}
    ordered = [*sorted(first.values()), *(row for row in rows if row not in first.values())]
    return ordered[:ANSWERS]


def _spread(items: Sequence[Any], count: int) -> list[Any]:
    """At most `count` of the items, first and last among them."""
    if len(items) <= count:
        return list(items)
    return [items[round(i * (len(items) - 1) / (count - 1))] for i in range(count)]


def _tokenizer(run: RunData) -> Any:
    from tokenizers import Tokenizer

    for path in _candidates(run):
        if path.is_file():
            try:
                return Tokenizer.from_file(str(path))
            except Exception:  # noqa: BLE001  the library raises bare Exception on a file that it cannot read
                continue
    return None


def _candidates(run: RunData) -> Iterable[Path]:
    yield from RunDir(run.root).export.glob("*/tokenizer.json")
    yield Path(str(run.setting("model.path", ""))) / "tokenizer.json"
