"""Everything that a run directory tells, read leniently: a run may be going on, torn, of another version, or partial.

Invariants:
- never_fails_on_a_part: whatever is missing or broken inside of a run directory becomes a note, not an error.
- one_record_a_step: steps rise strictly; the later record of a step wins.
- documented_only: records hold documented keys with values of their kind; everything else reads as unknown (None).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from siri_megatron.errors import DataError
from siri_megatron.files import read_json
from siri_megatron.observe import jsonl
from siri_megatron.observe.metrics import METRICS, known_of
from siri_megatron.observe.spans import read_spans
from siri_megatron.observe.summary import load_evaluation, tag_order
from siri_megatron.paths import RunDir
from siri_megatron.report.text import fit

LONGEST_NAME = 100


@dataclass(frozen=True)
class RunData:
    """A run as its report sees it. Every part may be empty."""

    name: str
    root: Path
    config: dict[str, Any] = field(default_factory=dict)
    records: list[dict[str, Any]] = field(default_factory=list)
    events: list[dict[str, Any]] = field(default_factory=list)
    evaluations: list[dict[str, Any]] = field(default_factory=list)
    result: dict[str, Any] = field(default_factory=dict)
    environment: dict[str, Any] = field(default_factory=dict)
    spans: list[dict[str, Any]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    """What could not be read, for people."""

    def setting(self, key: str, default: Any = None) -> Any:
        """A config value by its dotted key."""
        value: Any = self.config
        for part in key.split("."):
            value = value.get(part) if isinstance(value, Mapping) else None
        return default if value is None else value


def read_run(root: Path) -> RunData:
    """Read a run directory.

    Raises:
        DataError: there is no such directory, or nothing in it is of a run.
    """
    paths = RunDir(root)
    if not (paths.config.exists() or paths.metrics.exists() or paths.evaluations.is_dir()):
        raise DataError(f"{root} is no run directory", fix="give a directory that `siri train` or `siri eval` wrote",
                        rule="a run has config.yaml, metrics.jsonl or evaluations/")
    notes: list[str] = []
    config = _config(paths.config, notes)
    return RunData(
        name=fit(str(config.get("name") or root.resolve().name), LONGEST_NAME), root=root, config=config,
        records=_records(paths.metrics, notes), events=_events(paths.events, notes),
        evaluations=_evaluations(paths.evaluations, notes), result=_json(paths.result, notes),
        environment=_json(paths.environment, notes), spans=read_spans(paths.spans), notes=notes)


def _config(path: Path, notes: list[str]) -> dict[str, Any]:
    try:
        config = yaml.safe_load(path.read_text())
    except (OSError, ValueError, yaml.YAMLError) as error:
        notes.append(f"config.yaml cannot be read: {str(error).splitlines()[0]}")
        return {}
    return config if isinstance(config, dict) else {}


def _json(path: Path, notes: list[str]) -> dict[str, Any]:
    found = read_json(path)
    if found is None and path.exists():
        notes.append(f"{path.name} cannot be read: it is torn, or holds no JSON mapping")
    return found or {}


def _lines(path: Path, notes: list[str]) -> list[dict[str, Any]]:
    tailer = jsonl.Tailer(path)
    lines = tailer.poll()
    if tailer.skipped:
        notes.append(f"{path.name}: {tailer.skipped} torn lines were skipped")
    return lines


def _records(path: Path, notes: list[str]) -> list[dict[str, Any]]:
    found = {line["step"]: known(line) for line in _lines(path, notes) if type(line.get("step")) is int}
    return [found[step] for step in sorted(found)]


def _events(path: Path, notes: list[str]) -> list[dict[str, Any]]:
    return [line for line in _lines(path, notes) if isinstance(line.get("kind"), str) and finite(line.get("ts"))]


def _evaluations(directory: Path, notes: list[str]) -> list[dict[str, Any]]:
    found = []
    for path in directory.glob("*.json"):
        try:
            found.append(_short_names(load_evaluation(path)))
        except (DataError, OSError, TypeError, AttributeError, ValueError) as error:
            notes.append(f"evaluations/{path.name} was left out: {error}")
    return sorted(found, key=lambda evaluation: tag_order(evaluation["tag"]))


def _short_names(evaluation: dict[str, Any]) -> dict[str, Any]:
    """With names that fit a figure; raises on what is no evaluation inside."""
    tiers = {fit(str(tier), LONGEST_NAME): dict(at) for tier, at in dict(evaluation.get("tiers") or {}).items()}
    budgets = {str(int(budget)): dict(at) for budget, at in dict(evaluation["budgets"]).items()}
    examples = [dict(one) for one in evaluation.get("examples") or ()]
    return {**evaluation, "tag": fit(str(evaluation["tag"]), LONGEST_NAME), "tiers": tiers, "budgets": budgets,
            "examples": examples, "mean_tokens": float(evaluation["mean_tokens"])}


def known(record: Mapping[str, Any]) -> dict[str, Any]:
    """The documented keys of a metric record; None for what is of another kind, or unknown in its step."""
    return known_of({key: _value(METRICS[key].kind, value) for key, value in record.items() if key in METRICS})


def _value(kind: str, value: Any) -> Any:
    if kind == "curve":
        return ({int(budget): finite(item) for budget, item in value.items() if str(budget).isdigit()}
                if isinstance(value, Mapping) else None)
    if kind == "number":
        return finite(value)
    if kind == "text":
        return fit(value, LONGEST_NAME) if isinstance(value, str) else None
    return value if isinstance(value, bool) else None


def finite(value: Any) -> float | None:
    """A finite number, else None."""
    return value if isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value) else None
