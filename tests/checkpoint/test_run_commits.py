"""Commits of a whole run: in the background, failing, stopped and resumed."""

from __future__ import annotations

import json
import shutil
import threading
from pathlib import Path
from typing import Any

import pytest
from learners import Weights, same, stored
from models import write_model
from ranks import Rank, RankFailed, Ranks, run_ranks
from test_run import small_config, write_ledger

from siri_megatron.checkpoint import store
from siri_megatron.checkpoint.state_writer import StateWriter
from siri_megatron.config import RunConfig
from siri_megatron.observe import jsonl
from siri_megatron.paths import RunDir

STEPS = 6
BACKGROUND = {"async_save": True}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("loop")
    write_model(place / "model")
    write_ledger(config(place), RunDir(place / "recorded").ledger)
    return place


def config(place: Path, **checkpoint: Any) -> RunConfig:
    """Phase ends after steps 3 and 6."""
    small = small_config(place)
    budget = small.budget.model_copy(update={"cycle_steps": STEPS})
    kept = small.checkpoint.model_copy(update={"keep": 8, "export_phase_ends": False, **checkpoint})
    return small.model_copy(update={"budget": budget, "checkpoint": kept})


def run(rank: Rank, given: RunConfig, recorded: Path, root: Path, stop_at: int, fail_at: int,
        late: bool = False) -> int:
    """Train from a recorded ledger, from the newest commit if there is one. Returns the number of failed commits.

    Args:
        stop_at: the step during whose generation a stop is asked for; -1: none.
        fail_at: rank 1's disk is full at the commit of this step; -1: never.
        late: the stop is asked for when that step was generated, so it is trained.
    """
    from siri_megatron.assemble import assemble
    from siri_megatron.loop import train
    from siri_megatron.rollout.source import ReplaySource

    class Stopping(ReplaySource):
        def collect(self, budget: Any, stop: threading.Event, caps: Any) -> dict[str, Any] | None:
            collected = super().collect(budget, stop, caps) if late else None
            if budget.step == stop_at:
                stop.set()
            return collected if late else super().collect(budget, stop, caps)

    write = StateWriter.write

    def faulty(writer: StateWriter) -> Any:
        if rank.rank == 1 and f"step-{fail_at:06d}" in str(writer.directory):
            raise OSError(28, "No space left on device")
        return write(writer)

    StateWriter.write = faulty  # type: ignore[method-assign]
    try:
        root.mkdir(exist_ok=True)
        one = assemble(given, RunDir(root), rank=rank.rank, replay=recorded)
        one.source = Stopping(RunDir(recorded), given)
        train(one)
        one.close()
        return one.failed_commits
    finally:
        StateWriter.write = write  # type: ignore[method-assign]


def steps(root: Path) -> list[int]:
    return [record.step for record in store.commits(RunDir(root))]


def events(root: Path, kind: str) -> list[dict[str, Any]]:
    return [event for event in jsonl.read(RunDir(root).events) if event["kind"] == kind]


def ends(root: Path) -> Weights:
    return stored(root, STEPS)


def test_a_run_in_the_background_stopped_and_resumed_has_the_same_bits(place: Path, tmp_path: Path) -> None:
    """Stopped while the commit before may still be on its way: the stop waits for it, and the resume starts there."""
    with Ranks(2) as ranks:
        ranks.run(run, config(place), place / "recorded", tmp_path / "plain", -1, -1)
        given = config(place, **BACKGROUND)
        ranks.run(run, given, place / "recorded", tmp_path / "later", 2, -1)
        assert steps(tmp_path / "later") == [1, 2]
        ranks.run(run, given, place / "recorded", tmp_path / "later", -1, -1)
    assert steps(tmp_path / "later") == steps(tmp_path / "plain") == list(range(1, STEPS + 1))
    assert [event["step"] for event in events(tmp_path / "later", "commit")] == list(range(1, STEPS + 1))
    for step in range(1, STEPS + 1):
        assert same(stored(tmp_path / "later", step), stored(tmp_path / "plain", step))


def test_resumed_at_a_phase_end_after_it_and_after_the_last_step(place: Path, tmp_path: Path) -> None:
    """Exactly there a loop may go on with nothing, or with too much (verl PR#5725, NeMo-RL#3594)."""
    with Ranks(2) as ranks:
        ranks.run(run, config(place), place / "recorded", tmp_path / "plain", -1, -1)
        plain = RunDir(tmp_path / "plain")
        for step in (STEPS // 2, STEPS // 2 + 1, STEPS):
            paths = RunDir(shutil.copytree(plain.root, tmp_path / f"from-{step}"))
            for later in range(step + 1, STEPS + 1):
                shutil.rmtree(paths.checkpoint(later))
            ranks.run(run, config(place), place / "recorded", paths.root, -1, -1)
            assert steps(paths.root) == list(range(1, STEPS + 1))
            assert [event["step"] for event in events(paths.root, "commit")[STEPS:]] == list(range(step + 1, STEPS + 1))
            assert [one["step"] for one in jsonl.read(paths.metrics)] == list(range(STEPS))
            assert same(ends(paths.root), ends(plain.root))
            assert json.loads(paths.tags.read_text()) == json.loads(plain.tags.read_text())
    assert not same(stored(plain.root, STEPS), stored(plain.root, STEPS - 1)), "the last step changed nothing"


@pytest.mark.parametrize("background", [False, True])
def test_a_failed_commit_is_counted_and_the_run_goes_on(place: Path, tmp_path: Path, background: bool) -> None:
    given = config(place, on_error="continue", async_save=background)
    root = tmp_path / "run"
    assert run_ranks(run, 2, given, place / "recorded", root, -1, 4) == [1, 1]
    assert steps(root) == [1, 2, 3, 5, 6]
    (event,) = events(root, "commit_failed")
    assert event["step"] == 4
    assert "rank 1" in event["message"]
    assert "No space left on device" in event["message"]
    counted = [record["failed_commits"] for record in jsonl.read(RunDir(root).metrics)]
    assert counted in ([0, 0, 0, 0, 1, 1], [0, 0, 0, 0, 0, 1])  # in the background it is known a step later
    assert counted[4] == (0 if background else 1)


@pytest.mark.parametrize("background", [False, True])
def test_a_failed_commit_stops_the_run_on_every_rank(place: Path, tmp_path: Path, background: bool) -> None:
    root = tmp_path / "run"
    with pytest.raises(RankFailed) as failed:
        run_ranks(run, 2, config(place, async_save=background), place / "recorded", root, -1, 4)
    assert str(failed.value).count("checkpoint of step 4 could not be written: rank 1") == 2
    assert steps(root) == [1, 2, 3]
    assert len(jsonl.read(RunDir(root).metrics)) == (5 if background else 4)


def test_a_stop_commits_although_the_save_in_flight_failed(place: Path, tmp_path: Path) -> None:
    """What was trained since is not lost with it: the stop's own commit counts."""
    given = config(place, on_error="continue", async_save=True)
    assert run_ranks(run, 2, given, place / "recorded", tmp_path / "run", 4, 4, True) == [1, 1]
    assert steps(tmp_path / "run") == [1, 2, 3, 5]


def test_nothing_to_go_on_with(place: Path, tmp_path: Path) -> None:
    """The last commit fails: the run has not succeeded, whatever on_error says."""
    with pytest.raises(RankFailed, match="checkpoint of step 6 could not be written"):
        run_ranks(run, 2, config(place, on_error="continue"), place / "recorded", tmp_path / "run", -1, STEPS)
