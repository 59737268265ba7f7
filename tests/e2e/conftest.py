from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from pathlib import Path

import pytest
from kills import Kill, KilledRun, Score, replay_command
from real_run import SMALL, RealRun, command
from stages import Stages

from siri_megatron.paths import RunDir


@pytest.fixture(scope="session")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="session")
def stages(runs: Path) -> Iterator[Stages]:
    stages = Stages(runs)
    yield stages
    stages.close()


@pytest.fixture(scope="session")
def resumed(runs: Path, stages: Stages) -> RealRun:
    """A run of four steps whose supervisor is killed by SIGKILL while the third is trained on, then resumed to its end.

    Whatever the supervisor had started ends by itself. Its engine is the stock one; others have two.
    """
    argv = command("tiny.yaml", runs, "killed", *SMALL, "engines.count=1")
    run = KilledRun(RealRun(RunDir(runs / "killed")), stages, Score(), argv)
    run.play(deque([Kill("training", "supervisor", 3, 0.5)]))
    assert run.score.hit.total() == 1
    return run.run


@pytest.fixture(scope="session")
def replayed(resumed: RealRun, runs: Path, stages: Stages) -> RealRun:
    """The resumed run's ledger, trained on by learners one of which is killed while it saves its second commit."""
    run = KilledRun(RealRun(RunDir(runs / "replayed")), stages, Score(), replay_command(resumed, "replayed"))
    run.play(deque([Kill("save", "learner", 2, 0.5)]))
    assert (run.score.hit.total(), run.score.unnamed) == (1, [])
    return run.run
