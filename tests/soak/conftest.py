"""Runs that several soak tests look at."""

from __future__ import annotations

from pathlib import Path

import pytest
from real_run import SIX_STEPS, RealRun, command, siri

from siri_megatron.paths import RunDir


@pytest.fixture(scope="session")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("soak")


@pytest.fixture(scope="session")
def never_killed(runs: Path) -> RealRun:
    """Six steps of the shipped config: two pipeline stages, two engines, packed rows, shared-memory push."""
    siri(*command("tiny.yaml", runs, "never-killed", *SIX_STEPS)[1:])
    return RealRun(RunDir(runs / "never-killed"))
