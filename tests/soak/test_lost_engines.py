"""Engines killed and stopped, in generation and in push, again and again: the bits of a run that lost none."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest
from lost_engines import Loss, run_with_losses
from real_run import SIX_STEPS, RealRun
from test_kill_anywhere import equal

pytestmark = [pytest.mark.soak, pytest.mark.engine]

QUICK = ("engines.suspect_s=5", "engines.dead_s=10", "engines.hang_s=15", "engines.restart_backoff_s=0.1")


@pytest.mark.parametrize("losses", [
    [Loss("generation", 1, 0), Loss("push", 2, 1, both_up=False)],
    [Loss("push", 1, 1)],
    [Loss("push", 1, 0, signal.SIGSTOP)],
    [Loss("generation", 2, 1, signal.SIGSTOP)],
    [Loss("generation", 1, 0, signal.SIGSTOP, core=True)],
    [Loss("push", 2, 1, signal.SIGSTOP, core=True)],
    [Loss("generation", 1, 0), Loss("generation", 1, 1, both_up=False)],
], ids=["generation-and-push", "push", "push-stopped", "generation-stopped", "core-stopped", "core-stopped-in-push",
        "both"])
def test_lost_engines_change_nothing(never_killed: RealRun, runs: Path, request: pytest.FixtureRequest,
                                     losses: list[Loss]) -> None:
    name = request.node.callspec.id
    # With no engine left a push waits push.timeout_s for one to come back; with one that is stopped, for its answer.
    special = ("engines.min_engines=0", "push.timeout_s=15") if len(losses) > 1 else ("push.timeout_s=10",)
    assert equal(run_with_losses(runs, name, losses, (*SIX_STEPS, *QUICK, *special)), never_killed)
