"""What is printed when a run has ended: the verdict, the tables, where everything lies, and what to try next."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from siri_megatron.config import RunConfig
from siri_megatron.launch.progress import exports
from siri_megatron.launch.spec import ProcessPlan
from siri_megatron.launch.verdict import Verdict
from siri_megatron.observe import jsonl
from siri_megatron.observe.progress_state import event_line
from siri_megatron.observe.render import number, percent, say
from siri_megatron.observe.stages import stage_report, stage_table
from siri_megatron.observe.summary import load_evaluations, summary_table
from siri_megatron.paths import RunDir


def print_outcome(verdict: Verdict, plan: ProcessPlan, config: RunConfig, console: Console) -> None:
    """Tables first, the verdict below them, where the eye ends up."""
    print_summary(plan.run_dir, console)
    if plan.task == "eval":
        print_evaluation(plan.run_dir, console)
    print_verdict(verdict, plan, console)
    if verdict.status == "success":
        say(console, _whereabouts(plan, config))


def draw_report(run_dir: RunDir, console: Console) -> None:
    """Write report.html and trace.json. What goes wrong with them is said, and changes nothing about the run."""
    if not run_dir.metrics.exists():
        return
    started = time.perf_counter()
    try:
        from siri_megatron.report.command import write_of_run  # a second of imports

        written = write_of_run(run_dir.root)
    except (Exception, KeyboardInterrupt) as error:  # noqa: BLE001  the run has its verdict, whatever a drawing meets
        say(console, f"no report: {type(error).__name__}: {error} (siri report {run_dir.root} tries again)")
        return
    spent = time.perf_counter() - started
    say(console, f"report         {', '.join(map(str, written))}  (drawn in {spent:.1f} s)")


def print_summary(run_dir: RunDir, console: Console) -> None:
    """The table of checkpoints and the table of stages, as far as there is something to show."""
    if evaluations := load_evaluations(run_dir.evaluations):
        console.print(summary_table(evaluations))
    if records := jsonl.read(run_dir.metrics):
        events = jsonl.read(run_dir.events)
        console.print(stage_table(stage_report(records, events, startup_seconds(events))))


def print_evaluation(run_dir: RunDir, console: Console) -> None:
    """J(B), tiers and suites of the evaluation, each with its 95% interval."""
    for evaluation in load_evaluations(run_dir.evaluations):
        curve = _table("J(B)", "budget", "accuracy", "95% interval")
        for budget, at in sorted(evaluation["budgets"].items(), key=lambda item: int(item[0])):
            curve.add_row(budget, percent(at["accuracy"]), _interval(at["ci"]))
        tiers = _table("Tiers", "tier", "accuracy", "95% interval", "tokens", "truncated", "problems")
        for tier, at in evaluation.get("tiers", {}).items():
            tiers.add_row(tier, percent(at["accuracy"]), _interval(at["accuracy_ci"]), number(at["mean_tokens"]),
                          percent(at["truncated"]), str(at["problems"]))
        console.print(curve, tiers, suite_table(evaluation))
        ends = " to ".join(number(end) for end in evaluation["mean_tokens_ci"] or ()) or "none"
        say(console, f"mean tokens {number(evaluation['mean_tokens'])}, 95% interval {ends}; "
                     f"all of it in {run_dir.evaluations / evaluation['tag']}.json")


def suite_table(evaluation: Mapping[str, Any]) -> Table:
    """A row a suite: avg@k with its interval over questions, pass@k, tokens."""
    table = _table("Suites", "suite", "questions", "left out", "avg@k", "95% interval", "pass@k", "k", "tokens",
                   "truncated")
    for at in (evaluation, *evaluation.get("suites", {}).values()):
        table.add_row(at.get("suite", ""), str(at["problems"]), str(at.get("left_out", 0)), percent(at["accuracy"]),
                      _interval(at["accuracy_ci"]), percent(at.get("pass_at", {}).get(str(at["samples"]))),
                      str(at["samples"]), number(at["mean_tokens"]), percent(at["truncated"]))
    return table


def _table(title: str, *heads: str) -> Table:
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD)
    for index, head in enumerate(heads):
        table.add_column(head, justify="right" if index else "left", no_wrap=True)
    return table


def _interval(ci: Sequence[float] | None) -> str:
    return f"{percent(ci[0])} to {percent(ci[1])}" if ci else "none"


def startup_seconds(events: Sequence[Mapping[str, Any]]) -> float:
    """Seconds from each launch of the run until its first step could begin, added up over resumes."""
    total, launched = 0.0, None
    for event in events:
        if event["kind"] == "launch":
            launched = event["ts"]
        elif event["kind"] == "ready" and launched is not None:
            total, launched = total + event["ts"] - launched, None
    return total


def print_verdict(verdict: Verdict, plan: ProcessPlan, console: Console) -> None:
    steps = f" after {verdict.step} of {plan.steps} steps" if plan.steps else ""
    say(console, f"\n{plan.task} {verdict.status}{steps}, {verdict.extra['seconds']:.0f} s in all")
    if verdict.status == "success":
        return
    say(console, verdict.reason)
    also = ", ".join(f"{failure.role} ({failure.what.splitlines()[0][:80]})" for failure in verdict.failures[1:])
    if also:
        say(console, f"then also: {also}")
    say(console, f"logs: {plan.run_dir.logs}")
    if plan.task in ("train", "replay", "rollout-only"):
        start = "closed steps are kept" if plan.task == "rollout-only" else f"from step {verdict.committed or 0}"
        say(console, f"resume: {resume_command(plan)}  ({start})")


def resume_command(plan: ProcessPlan) -> str:
    """The command that goes on with this run."""
    if any(process.node for process in plan.processes):
        return f"siri launch slurm {plan.run_dir.config}"  # on each node, by whatever launcher
    mode = {"rollout-only": " --rollout-only", "replay": " --replay RUN"}.get(plan.task, "")
    return f"siri train {plan.run_dir.config}{mode} --resume"


def _whereabouts(plan: ProcessPlan, config: RunConfig) -> str:
    paths = plan.run_dir
    found = [path.name for path in exports(paths)]
    lines = [f"run directory  {paths.root}  (metrics.jsonl, events.jsonl, ledger, checkpoints, logs)"]
    if found:
        lines += [f"exports        {paths.export}/{{{','.join(found)}}}  (plain Hugging Face directories)",
                  f"next           siri eval {paths.export}/{found[-1]} --samples 4 --budgets "
                  f"{','.join(map(str, config.evaluation.budgets))}"]
    if plan.task == "train":
        lines.append(f"               siri train {paths.config} --replay {paths.root} name={config.name}-replay")
        if config.tensorboard:
            lines.append(f"               tensorboard --logdir {paths.tensorboard}")
    if plan.task == "rollout-only":
        lines.append(f"next           siri train {paths.config} --replay {paths.root} name={config.name}-replay")
    return "\n".join(lines)


class PlainDisplay:
    """A line for every event and status: for runs without phases (`siri sft`)."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self._last = ""

    def status(self, text: str) -> None:
        if text != self._last:
            self._last = text
            say(self.console, text)

    def record(self, record: Mapping[str, Any]) -> None:
        """Nothing: the learner sums up every few steps in an event."""

    def event(self, event: Mapping[str, Any]) -> None:
        say(self.console, event_line(event))

    def close(self) -> None: ...
