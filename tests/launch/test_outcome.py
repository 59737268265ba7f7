"""What is printed at the end of a run."""

from __future__ import annotations

import io
import json
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from siri_megatron.config import RunConfig, validate
from siri_megatron.launch import outcome
from siri_megatron.launch.spec import Machine, Task, plan_run
from siri_megatron.launch.verdict import Failure, Status, Verdict
from siri_megatron.paths import RunDir


def config(root: Path) -> RunConfig:
    return validate({"name": "r", "runs_dir": str(root), "model": {"path": "m"}, "optimizer": {"lr": 1e-4},
                     "budget": {"l_min": 8, "l_max": 16, "cycle_steps": 4, "cycles": 2}}, "test")


def printed(root: Path, status: Status, task: Task = "train", reason: str = "", **fields: object) -> str:
    console = Console(file=io.StringIO(), width=120)
    verdict = Verdict(status, reason, extra={"seconds": 61.2}, step=5, **fields)  # type: ignore[arg-type]
    plan = plan_run(config(root), task, Machine(cores=(0,)))
    outcome.print_outcome(verdict, plan, config(root), console)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def write_evaluation(root: Path, tag: str) -> None:
    directory = root / "r" / "evaluations"
    directory.mkdir(parents=True, exist_ok=True)
    (directory / f"{tag}.json").write_text(json.dumps({
        "tag": tag, "accuracy": 0.5, "accuracy_ci": [0.4, 0.6], "mean_tokens": 40.0, "mean_tokens_ci": [35.0, 45.0],
        "truncated": 0.1, "problems": 8, "samples": 2, "budgets": {"128": {"accuracy": 0.5, "ci": [0.41, 0.59]},
                                                                   "32": {"accuracy": 0.25, "ci": [0.11, 0.39]}},
        "tiers": {"k=3": {"accuracy": 0.75, "accuracy_ci": [0.6, 0.9], "mean_tokens": 20.0, "truncated": 0.0,
                          "problems": 4}}}))


def test_success_says_where_everything_is_and_what_is_next(tmp_path: Path) -> None:
    export = tmp_path / "r" / "export" / "iter1-expanded"
    export.mkdir(parents=True)
    (export / "config.json").write_text("{}")
    text = printed(tmp_path, "success")
    assert "train success after 5 of 8 steps, 61 s in all" in text
    assert f"siri eval {export}" in text
    assert "--replay" in text
    assert f"tensorboard --logdir {tmp_path}/r/tensorboard" in text


def test_failure_shows_the_first_cause_the_logs_and_how_to_go_on(tmp_path: Path) -> None:
    failures = (Failure("engine-0", "engine", "died"), Failure("learner-0", "main", "lost it\nlong wall"))
    text = printed(tmp_path, "failed", reason="engine-0: died", failures=failures, committed=4)
    assert "engine-0: died" in text
    assert "then also: learner-0 (lost it)" in text
    assert "long wall" not in text
    assert f"resume: siri train {tmp_path}/r/config.yaml --resume  (from step 4)" in text
    assert "next " not in text


def test_a_run_on_several_nodes_goes_on_by_its_launcher(tmp_path: Path) -> None:
    """`siri train` of such a config on one machine is refused."""
    plan = plan_run(config(tmp_path), "train", Machine(cores=(0,)))
    process = replace(plan.processes[-1], node=1)
    assert outcome.resume_command(replace(plan, processes=(process,))) == f"siri launch slurm {tmp_path}/r/config.yaml"


@pytest.mark.parametrize(("task", "words"), [("rollout-only", "--rollout-only --resume  (closed steps are kept)"),
                                             ("replay", "--replay RUN --resume  (from step 0)")])
def test_resume_command_keeps_the_mode(tmp_path: Path, task: Task, words: str) -> None:
    assert words in printed(tmp_path, "interrupted", task)


def test_evaluation_has_every_interval_and_budgets_in_order(tmp_path: Path) -> None:
    write_evaluation(tmp_path, "start")
    text = printed(tmp_path, "success", "eval")
    assert all(part in text for part in ("41.0% to 59.0%", "11.0% to 39.0%", "60.0% to 90.0%", "35.0 to 45.0"))
    curve = text[text.index("J(B)"):]
    assert curve.index(" 32 ") < curve.index(" 128 ")
    assert "resume:" not in text


def test_startup_is_added_up_over_resumes() -> None:
    events = [{"kind": "launch", "ts": 10.0}, {"kind": "engines_ready", "ts": 30.0}, {"kind": "ready", "ts": 31.0},
              {"kind": "commit", "ts": 40.0}, {"kind": "launch", "ts": 100.0},  # died before it was ready
              {"kind": "launch", "ts": 200.0}, {"kind": "ready", "ts": 205.0}, {"kind": "ready", "ts": 300.0}]
    assert outcome.startup_seconds(events) == 21.0 + 5.0


@given(st.lists(st.sampled_from(["launch", "ready", "commit"])))
def test_startup_is_never_negative_nor_longer_than_the_run(kinds: list[str]) -> None:
    seconds = outcome.startup_seconds([{"kind": kind, "ts": float(at)} for at, kind in enumerate(kinds)])
    assert 0 <= seconds <= max(0, len(kinds) - 1)


def drawn(root: Path) -> str:
    console = Console(file=io.StringIO(), width=120)
    outcome.draw_report(RunDir(root), console)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_a_report_is_drawn(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text('{"step": 0, "accuracy": 0.5}\n')
    assert drawn(tmp_path).startswith(f"report         {tmp_path}/report.html  (drawn in ")
    assert "</html>" in (tmp_path / "report.html").read_text()


def test_a_report_that_cannot_be_drawn_fails_nothing(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text('{"step": 0, "accuracy": 0.5}\n')
    (tmp_path / "report.html").mkdir()
    assert drawn(tmp_path).startswith("no report: IsADirectoryError: ")


def test_without_a_step_there_is_nothing_to_draw(tmp_path: Path) -> None:
    assert drawn(tmp_path) == ""
