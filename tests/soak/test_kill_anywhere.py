"""A run killed anywhere, again and again, ends with the bits of one that never was."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator
from pathlib import Path

import pytest
from kills import IN_REPLAY, IN_RUN, Score, schedule, tiny_replay, tiny_run
from real_run import RealRun, same_weights
from stages import STAGES, Stages

pytestmark = [pytest.mark.soak, pytest.mark.engine]

SEED = 5
RUN_KILLS, REPLAY_KILLS = 40, 24
PARTS = 5
"""The kills of whole runs are dealt to so many tests: `-k part-3` makes those of one."""
TAGS = ("iter1-compressed", "iter1-expanded")


def equal(one: RealRun, other: RealRun) -> bool:
    """Bit for bit: exported weights of every phase end, metric records but for times, evaluations."""
    return same_training(one, other) and one.evaluations() == other.evaluations()


def same_training(one: RealRun, other: RealRun) -> bool:
    return (all(same_weights(one.weights(tag), other.weights(tag)) for tag in TAGS)
            and one.comparable() == other.comparable())


@pytest.fixture(scope="module")
def stages(runs: Path) -> Iterator[Stages]:
    stages = Stages(runs)
    yield stages
    stages.close()


@pytest.fixture(scope="module")
def score(runs: Path) -> Iterator[Score]:
    """Of all parts together; printed, and written to a file, when the last one is done."""
    score = Score()
    yield score
    told = (f"soak kill-anywhere, seed {SEED}: {score.hit.total()} kills in {score.attempts} attempts at "
            f"{score.runs} runs; slowest end of all processes {score.slowest_end_s:.1f} s; of learners and collectors "
            f"the verdict named {score.named} first, and not {score.unnamed}; files left in shared memory to the "
            f"next start: {score.left_to_the_next_start}\n{score.table()}")
    (runs / "kills.txt").write_text(told + "\n")
    print(f"\n{told}\n{runs / 'kills.txt'}")


@pytest.fixture(scope="module")
def undisturbed(runs: Path, stages: Stages) -> RealRun:
    """The tiny run, never killed; from it is known how long each stage takes."""
    one = tiny_run(runs, "undisturbed", stages, Score())
    one.play(deque())
    stages.read(0)
    print("\nstages, seconds:", {stage: round(stages.seconds(stage), 4) for stage in ("loading", *STAGES)})
    assert all(stages.seconds(stage) > 0 for stage in STAGES)
    return one.run


def test_kill_replay_anywhere(undisturbed: RealRun, stages: Stages, score: Score) -> None:
    """The same in the learners' own stages, of replays of the run that was never killed."""
    start, kills, played = time.monotonic(), deque(schedule(SEED, IN_REPLAY, REPLAY_KILLS)), 0
    while kills:
        one = tiny_replay(undisturbed, f"replayed-{played}", stages, score)
        one.play(kills)
        played += 1
        assert same_training(one.run, undisturbed)
    print(f"{played} replays, all equal to the run; {time.monotonic() - start:.0f} s")


@pytest.mark.parametrize("part", range(PARTS), ids=lambda part: f"part-{part}")
def test_kill_anywhere(undisturbed: RealRun, runs: Path, stages: Stages, score: Score, part: int) -> None:
    """SIGKILL in every stage of all, the supervisor, a learner, the engine, the collector.

    A run that ends before its kills are done is followed by another.
    """
    start, kills, played = time.monotonic(), deque(schedule(SEED, IN_RUN, RUN_KILLS)[part::PARTS]), 0
    while kills:
        one = tiny_run(runs, f"killed-{part}-{played}", stages, score)
        one.play(kills)
        played += 1
        assert equal(one.run, undisturbed)
    print(f"part {part}: {played} runs, all equal to the one never killed; {time.monotonic() - start:.0f} s")


def test_training_changes_the_weights(undisturbed: RealRun) -> None:
    """Negative control of the comparison above."""
    assert not same_weights(*(undisturbed.weights(tag) for tag in TAGS))
