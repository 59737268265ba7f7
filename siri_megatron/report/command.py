"""`siri report RUN...`, and the report that a run writes of itself at its end."""

from __future__ import annotations

import json
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from siri_megatron.errors import ConfigError
from siri_megatron.files import write_text
from siri_megatron.paths import RunDir
from siri_megatron.report import rollouts
from siri_megatron.report.content import run_page
from siri_megatron.report.figures import tables
from siri_megatron.report.overlay import comparison_page
from siri_megatron.report.page import Page, render
from siri_megatron.report.plots import write_plots
from siri_megatron.report.read import RunData, read_run
from siri_megatron.report.trace import trace

RUNS = Path("runs")
COMPARISON = Path("comparison.html")


def report(args: Namespace, console: Console) -> int:
    """The command.

    Raises:
        ConfigError: a RUN is no directory, or `--step` is given with several.
        DataError: a directory is none of a run.
    """
    roots = [run_root(name) for name in args.runs]
    if len(roots) > 1 and args.step is not None:
        raise ConfigError(f"--step {args.step} with {len(roots)} runs", rule="a timeline is of one run",
                          fix="give one RUN, or leave --step out")
    runs = [read_run(root) for root in roots]
    page = page_of(runs, args.step)
    out = args.out or (RunDir(roots[0]).report if len(runs) == 1 else COMPARISON)
    write_text(out, render(page))
    written = [f"report  {out}"]
    if len(runs) == 1 and runs[0].spans:
        written.append(f"trace   {write_trace(runs[0], out.with_name('trace.json'))}")
    if args.plots:
        written.append(f"plots   {args.plots}  ({write_plots(page, args.plots)} files)")
    console.print("\n".join(written), highlight=False, soft_wrap=True, markup=False)
    return 0


def page_of(runs: Sequence[RunData], step: int | None = None) -> Page:
    """The page of one run, or the comparison of several."""
    if len(runs) > 1:
        return comparison_page(runs)
    run = runs[0]
    training, notes = rollouts.training(run)
    return run_page(run, tables(run, step), [*rollouts.examples(run.evaluations), *training], notes)


def write_of_run(root: Path) -> list[Path]:
    """Write report.html and trace.json into a run directory; returns what was written."""
    run = read_run(root)
    paths = RunDir(root)
    write_text(paths.report, render(page_of([run])))
    return [paths.report, *([write_trace(run, paths.trace)] if run.spans else [])]


def write_trace(run: RunData, path: Path) -> Path:
    write_text(path, json.dumps(trace(run), separators=(",", ":")))
    return path


def run_root(name: Path) -> Path:
    """RUN may be a directory or the name of a run in runs/."""
    for root in (name, RUNS / name):
        if root.is_dir():
            return root
    there = ", ".join(sorted(path.name for path in RUNS.glob("*/"))) or "none"
    raise ConfigError(f"run {name} is neither a directory nor in {RUNS}/", rule="RUN names a run directory",
                      fix=f"give the directory of a run, or one of those in {RUNS}/: {there}")
