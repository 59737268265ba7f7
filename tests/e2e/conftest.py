from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path

import pytest
from engine_fleet import wait_until
from process_table import descendants, living
from real_run import REPO, SMALL, RealRun, command, siri

from siri_megatron.observe import jsonl
from siri_megatron.paths import RunDir

KILLED_AFTER = 2  # steps


@pytest.fixture(scope="session")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="session")
def killed(runs: Path) -> RealRun:
    """A run of four steps whose supervisor is killed by SIGKILL in the third, and which is then left alone."""
    paths = RunDir(runs / "killed")
    log = runs / "killed.log"
    with log.open("wb") as output:
        process = subprocess.Popen(command("tiny.yaml", runs, "killed", *SMALL), cwd=REPO, stdout=output,
                                   stderr=subprocess.STDOUT)
    try:
        wait_until(lambda: process.poll() is not None or len(jsonl.read(paths.metrics)) >= KILLED_AFTER, 240,
                   f"{KILLED_AFTER} steps of the run that is to be killed")
        assert process.poll() is None, log.read_text()
        started = descendants(process.pid)
    finally:
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
    assert len(started) >= 5, "two engines, two learners and the collector"
    wait_until(lambda: not started & living().keys(), 20, "every process of the killed run to be gone")
    return RealRun(paths)


@pytest.fixture(scope="session")
def resumed(killed: RealRun) -> RealRun:
    """The killed run, resumed to its end."""
    siri("train", str(killed.paths.config), "--resume")
    return killed


@pytest.fixture(scope="session")
def replayed(resumed: RealRun, runs: Path) -> RealRun:
    """The resumed run's ledger, trained on by learners that are never interrupted."""
    siri("train", str(resumed.paths.config), "--replay", str(resumed.paths.root), "name=replayed")
    return RealRun(RunDir(runs / "replayed"))
