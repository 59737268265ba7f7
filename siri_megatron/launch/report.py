"""What is printed when a run has ended: the verdict, the tables, where everything lies, and what to try next."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console

from siri_megatron.config import RunConfig
from siri_megatron.launch.spec import ProcessPlan
from siri_megatron.launch.verdict import Verdict
from siri_megatron.observe import jsonl
from siri_megatron.observe.progress_state import event_line
from siri_megatron.observe.stages import stage_report, stage_table
from siri_megatron.observe.summary import load_evaluations, summary_table
from siri_megatron.paths import RunDir


def print_report(verdict: Verdict, plan: ProcessPlan, config: RunConfig, console: Console) -> None:
    """Tables first, the verdict below them, where the eye ends up."""
    print_summary(plan.run_dir, console)
    print_verdict(verdict, plan, console)
    if verdict.status == "success":
        _say(console, _whereabouts(plan, config))


def print_summary(run_dir: RunDir, console: Console) -> None:
    """The table of checkpoints and the table of stages, as far as there is something to show."""
    if evaluations := load_evaluations(run_dir.evaluations):
        console.print(summary_table(evaluations))
    if records := jsonl.read(run_dir.metrics):
        events = jsonl.read(run_dir.events)
        console.print(stage_table(stage_report(records, events, startup_seconds(events))))


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
    _say(console, f"\n{plan.task} {verdict.status}{steps}, {verdict.extra['seconds']:.0f} s in all")
    if verdict.status == "success":
        return
    _say(console, verdict.reason)
    also = ", ".join(f"{failure.role} ({failure.what.splitlines()[0][:80]})" for failure in verdict.failures[1:])
    if also:
        _say(console, f"then also: {also}")
    _say(console, f"logs: {plan.run_dir.logs}")
    if plan.task in ("train", "replay", "rollout-only"):
        _say(console, f"resume: {resume_command(plan)}  (from step {verdict.committed or 0})")


def resume_command(plan: ProcessPlan) -> str:
    """The command that goes on with this run."""
    mode = {"rollout-only": " --rollout-only", "replay": " --replay RUN"}.get(plan.task, "")
    return f"siri train {plan.run_dir.config}{mode} --resume"


def _whereabouts(plan: ProcessPlan, config: RunConfig) -> str:
    paths = plan.run_dir
    exports = sorted(path.parent.name for path in paths.export.glob("*/config.json"))
    lines = [f"run directory  {paths.root}  (metrics.jsonl, events.jsonl, ledger, checkpoints, logs)"]
    if exports:
        lines += [f"exports        {paths.export}/{{{','.join(exports)}}}  (plain Hugging Face directories)",
                  "next           siri eval " f"{paths.export}/{exports[-1]} --samples 4 --budgets "
                  f"{','.join(map(str, config.evaluation.budgets))}"]
    if plan.task == "train":
        lines.append(f"               siri train {paths.config} --replay {paths.root} name={config.name}-replay")
        if config.tensorboard:
            lines.append(f"               tensorboard --logdir {paths.tensorboard}")
    if plan.task == "rollout-only":
        lines.append(f"next           siri train {paths.config} --replay {paths.root} name={config.name}-replay")
    return "\n".join(lines)


def _say(console: Console, text: str) -> None:
    console.print(text, markup=False, highlight=False, soft_wrap=True)


class PlainDisplay:
    """A line for everything that happens: for runs without phases (`siri sft`)."""

    def __init__(self, console: Console, steps: int) -> None:
        self.console, self.steps = console, steps
        self._last = ""

    def status(self, text: str) -> None:
        if text != self._last:
            self._last = text
            _say(self.console, text)

    def record(self, record: Mapping[str, Any]) -> None:
        figures = "  ".join(f"{key} {value:.4g}" for key, value in record.items()
                            if key != "step" and isinstance(value, (int, float)))
        _say(self.console, f"step {record['step'] + 1}/{self.steps}  {figures}")

    def event(self, event: Mapping[str, Any]) -> None:
        _say(self.console, event_line(event))

    def close(self) -> None: ...
