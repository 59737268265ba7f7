"""What stands on the page of one run. Pure."""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import datetime
from typing import Any

import yaml

from siri_megatron.observe.progress_state import event_line
from siri_megatron.observe.render import duration, number, percent, rate
from siri_megatron.observe.stages import STAGES
from siri_megatron.report.advise import advise
from siri_megatron.report.figures import figures
from siri_megatron.report.marks import Figure, Tables
from siri_megatron.report.page import Fact, Page, Section, Source, Table
from siri_megatron.report.read import RunData
from siri_megatron.report.text import fit

HEADINGS = (
    ("learning", "Learning", "How accuracy and answer length follow the moving budget."),
    ("budget", "Accuracy and budget", "What an answer of a given length is worth."),
    ("health", "Health", "Whether gradients, updates and the two policies (engines and learner) are sound."),
    ("speed", "Speed", "Where the time went."),
    ("batches", "Micro-batches", "How well the step's tokens fit the shapes that the learner runs."),
    ("timeline", "Timeline", ""))
MOST_ROWS, MOST_EVENTS, LONGEST_LINE = 60, 400, 500


def run_page(run: RunData, data: Tables, samples: Sequence[dict[str, Any]], notes: Sequence[str] = ()) -> Page:
    """The page of a run. notes: about what could not be shown, besides the run's own."""
    drawn = figures(data)
    tables = {"budget": checkpoint_tables(data), "speed": phase_tables(data)}
    sections = [_advice(run, [*run.notes, *notes])]
    for name, heading, intro in HEADINGS:
        shown = [figure for figure in drawn if figure.section == name]
        if shown or tables.get(name):
            sections.append(Section(name, heading, intro, shown, tables.get(name, ())))
    if samples:
        sections.append(Section("samples", "Sample rollouts", "The same held-out prompts at every checkpoint, and some "
                                "prompts of training; right and wrong answers.", searchable=True))
    sections.append(Section("run", "Run", tables=environment_tables([run]), sources=sources(run)))
    return Page(run.name, state(run), lead(data), facts(run, data), sections, data, samples)


def state(run: RunData) -> str:
    """How far the run is, in a line."""
    task = run.result.get("task", "run")
    status = run.result.get("status", "without a verdict: still running, or killed")
    steps = f"{len(run.records)} of {run.result['steps']}" if run.result.get("steps") else f"{len(run.records)}"
    model = run.setting("model.path")
    schedule = run.setting("budget.schedule")
    caps = [record["cap"] for record in run.records if record.get("cap") is not None]
    parts = [f"{task} {status}", f"{steps} steps", model and f"model {model}", schedule and f"{schedule} schedule",
             f"caps {min(caps):.0f} to {max(caps):.0f}" if caps else "",
             f"seed {run.setting('seed')}" if run.config else ""]
    return fit(" · ".join(str(part) for part in parts if part), LONGEST_LINE)


def lead(data: Tables) -> str:
    """What the run did to its model, in a sentence, from its first and last evaluation."""
    rows = [row for row in data["checkpoints"] if row["accuracy"] is not None]
    if len(rows) < 2:
        return ""
    first, last = rows[0], rows[-1]
    verb = "stayed within its interval, from" if _overlap(first, last) else (
        "rose from" if last["accuracy"] > first["accuracy"] else "fell from")
    change = f" ({last['tokens'] / first['tokens'] - 1:+.0%})".replace("-", "−") if first["tokens"] else ""
    return (f"From {first['tag']} to {last['tag']}, accuracy on {last['problems']:,} held-out problems {verb} "
            f"{percent(first['accuracy'])} to {percent(last['accuracy'])}, while the mean answer went from "
            f"{number(first['tokens'])} to {number(last['tokens'])} tokens{change}.")


def _overlap(one: dict[str, Any], other: dict[str, Any]) -> bool:
    if one["accuracy_low"] is None or other["accuracy_low"] is None:
        return one["accuracy"] == other["accuracy"]
    return bool(one["accuracy_low"] <= other["accuracy_high"] and other["accuracy_low"] <= one["accuracy_high"])


def facts(run: RunData, data: Tables) -> list[Fact]:
    """The figures at the top."""
    last = run.records[-1] if run.records else {}
    totals = data["steps"][-1] if data["steps"] else {}
    found = []
    for name in ("SIRI-low", "SIRI-high"):
        for row in data["checkpoints"]:
            if row["name"] == name:
                found.append(Fact(f"{name} accuracy", percent(row["accuracy"]), f"{number(row['tokens'])} tokens"))
    if last:
        found.append(Fact("Steps", f"{len(run.records):,}", f"last: {last.get('phase') or ''}, cap {last.get('cap')}"))
        found.append(Fact("Truncated, last step", percent(last.get("truncated"))))
        found.append(Fact("Sampled", large(sum(record.get("tokens") or 0 for record in run.records)), "tokens"))
        found.append(Fact("Time in steps", duration(3600 * (totals.get("hours_so_far") or 0))))
    if run.result.get("seconds"):
        found.append(Fact("Whole run", duration(run.result["seconds"]), "newest launch"))
    return found


def large(value: float) -> str:
    """1234567 -> `1.23M`."""
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{value / size:.3g}{unit}"
    return f"{value:.0f}"


def _advice(run: RunData, notes: Sequence[str]) -> Section:
    found = advise(run)
    intro = "" if found else "Nothing stands out: every figure lies within its limits (docs/report.md lists them)."
    table = Table("What could not be read", ("",), [[fit(note, LONGEST_LINE)] for note in notes])
    return Section("advice", "Advice", intro, advice=found, tables=[table] if notes else [])


def checkpoint_tables(data: Tables) -> list[Table]:
    """Every evaluation, with J(B)."""
    rows = data["checkpoints"]
    if not rows:
        return []
    budgets = sorted({row["budget"] for row in data["budgets"]})
    at = {(row["order"], row["budget"]): row["accuracy"] for row in data["budgets"]}
    cells = [[row["tag"], row["name"], percent(row["accuracy"]), interval(row["accuracy_low"], row["accuracy_high"]),
              number(row["tokens"]), percent(row["truncated"]),
              *(percent(at.get((row["order"], budget))) for budget in budgets)] for row in rows]
    note = (f"{rows[-1]['problems']:,} held-out problems x {rows[-1]['samples']} samples. @B: answers cut at B tokens. "
            "Intervals: 95%, over problems.")
    return [Table("Checkpoints", ("checkpoint", "", "accuracy", "95% interval", "tokens", "truncated",
                                  *(f"@{budget}" for budget in budgets)), _few(cells), note, texts=(0, 1),
                  strong=[i for i, row in enumerate(_few(rows)) if row["name"]])]


def phase_tables(data: Tables) -> list[Table]:
    """A row a phase: seconds of every stage, tokens a second."""
    rows = data["phases"]
    if not rows:
        return []
    used = [stage for stage in STAGES if any(row[f"{stage}_s"] for row in rows)]
    cells = [[row["name"], f"{row['start']:.0f}–{row['end'] - 1:.0f}", _caps(row), rate(row["generation_speed"]),
              rate(row["training_speed"]), *(number(row[f"{stage}_s"]) for stage in used)] for row in rows]
    return [Table("Phases", ("phase", "steps", "cap", "generation", "training", *(f"{stage}, s" for stage in used)),
                  _few(cells), "generation, training: tokens a second; then seconds of each stage.", texts=(0,))]


def _caps(row: dict[str, Any]) -> str:
    return "" if row["first_cap"] is None else f"{row['first_cap']:.0f} → {row['last_cap']:.0f}"


def interval(low: float | None, high: float | None) -> str:
    return "" if low is None else f"{percent(low)} to {percent(high)}"


def _few(rows: Sequence[Any]) -> list[Any]:
    """At most MOST_ROWS rows: the first and the last ones."""
    half = MOST_ROWS // 2
    return list(rows) if len(rows) <= MOST_ROWS else [*rows[:half], *rows[-half:]]


def environment_tables(runs: Sequence[RunData]) -> list[Table]:
    """Versions and machine of each run."""
    known = [run for run in runs if run.environment]
    if not known:
        return []
    keys = ("system", "machine", "cores", "memory_gib", "python")
    packages = list(dict.fromkeys(name for run in known for name in _packages(run)))
    rows = [[key, *(fit(str(run.environment.get(key, "")), 200) for run in known)] for key in keys]
    rows += [[fit(name, 100), *(fit(str(_packages(run).get(name, "")), 100) for run in known)] for name in packages]
    return [Table("Environment", ("", *(run.name for run in known)), rows, texts=range(len(known) + 1))]


def _packages(run: RunData) -> dict[str, Any]:
    found = run.environment.get("packages")
    return found if isinstance(found, dict) else {}


def sources(run: RunData) -> list[Source]:
    """Config, events and verdict, whole."""
    events = run.events[-MOST_EVENTS:]
    lines = [f"{datetime.fromtimestamp(event['ts']):%Y-%m-%d %H:%M:%S}  {fit(event_line(event), LONGEST_LINE)}"
             for event in events]
    left = f"(the last {len(events)} of {len(run.events)})\n" if len(events) < len(run.events) else ""
    found = [Source("config.yaml", fit(yaml.safe_dump(run.config, sort_keys=False, allow_unicode=True), 60_000))]
    if events:
        found.append(Source(f"Events ({len(run.events)})", left + "\n".join(lines)))
    if run.result:
        found.append(Source("result.json", fit(json.dumps(run.result, indent=1, ensure_ascii=False), 20_000)))
    return found


def shown_figures(page: Page) -> list[Figure]:
    """Every figure of a page, in order."""
    return [figure for section in page.sections for figure in section.figures]
