"""Runs that several soak tests look at."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from real_run import SIX_STEPS, RealRun, command, siri
from stages import Stages

from siri_megatron.paths import RunDir


@pytest.fixture(scope="session")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("soak")


@pytest.fixture(scope="module")
def stages(runs: Path) -> Iterator[Stages]:
    """Of the runs of a file, which draw no report."""
    stages = Stages(runs, report=False)
    yield stages
    stages.close()


@pytest.fixture(scope="session")
def never_killed(runs: Path) -> RealRun:
    """Six steps of the shipped config: two pipeline stages, two engines, packed rows, shared-memory push."""
    siri(*command("tiny.yaml", runs, "never-killed", *SIX_STEPS)[1:])
    return RealRun(RunDir(runs / "never-killed"))
