"""Processes that are stopped, not killed: the run ends within a bounded time and names the one that hangs."""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path

import pytest
from engine_fleet import wait_until
from kills import GONE_S, GUARD, PATIENCE_S, TINY, WORDS, replay_command
from leftovers import Leftovers
from process_table import Watch
from real_run import REPO, RealRun, command
from stages import Stages

from siri_megatron.paths import RunDir

pytestmark = [pytest.mark.soak, pytest.mark.engine]

SILENCE_S = 8.0
ENDS_S = 60.0
QUICK = (f"learner.heartbeat_timeout_s={SILENCE_S}",)


def stopped_in(stages: Stages, stage: str, argv: list[str], run: RealRun, role: str, which: int) -> None:
    """Start a run, stop one process of a role in a stage, and see the run end."""
    stages.restart()
    log = run.paths.root.with_suffix(".log")
    with log.open("wb") as output:
        process = subprocess.Popen(argv, cwd=REPO, stdout=output, stderr=subprocess.STDOUT, env=stages.env(os.environ))
    watch = Watch(process.pid)
    left = Leftovers(run.paths, watch)
    try:
        assert stages.wait_for(stage, lambda: process.poll() is not None, PATIENCE_S), log.read_text()
        left.note()
        os.kill(watch.children(GUARD, WORDS[role])[which], signal.SIGSTOP)
        wait_until(lambda: watch.left() in ([], [process.pid]), SILENCE_S + ENDS_S, "every process to be gone")
        process.wait(PATIENCE_S)
        left.check_gone(GONE_S, f"{role} stopped in {stage}")
        assert left.shared() == []
    finally:
        process.kill()
        process.wait()
        watch.close()


@pytest.mark.parametrize(("stage", "rank"), [("training", 0), ("training", 1), ("save", 1)])
def test_stopped_learner_is_named(never_killed: RealRun, stages: Stages, stage: str, rank: int) -> None:
    name = f"stopped-{stage}-{rank}"
    run = RealRun(RunDir(never_killed.paths.root.parent / name))
    stopped_in(stages, stage, [*replay_command(never_killed, name), *QUICK], run, "learner", rank)
    hangs(run, f"learner-{rank}")


@pytest.mark.parametrize(("stage", "role", "rank"), [("generation", "collector", 0), ("generation", "learner", 1),
                                                     ("push", "learner", 0)])
def test_stopped_process_of_a_whole_run_is_named(runs: Path, stages: Stages, stage: str, role: str, rank: int) -> None:
    """In generation nobody waits for the second learner, and no collective is open."""
    name = f"stopped-{role}-{stage}"
    run = RealRun(RunDir(runs / name))
    stopped_in(stages, stage, command("tiny.yaml", runs, name, *TINY, *QUICK), run, role, rank)
    hangs(run, "collector" if role == "collector" else f"learner-{rank}")


def hangs(run: RealRun, role: str) -> None:
    assert run.result["status"] == "failed"
    assert run.result["reason"].startswith(f"{role}: hangs: nothing of it has run for "), run.result["reason"]
