"""A run killed anywhere, again and again, ends with the bits of one that never was."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

import pytest
from by_hand import ByHand
from kills import IN_REPLAY, IN_RUN, ON_GIVEN, TINY, Kill, KilledRun, Score, schedule, tiny_replay, tiny_run
from real_run import RealRun, same_weights
from stages import STAGES, Stages

pytestmark = [pytest.mark.soak, pytest.mark.engine]

SEED = 5
RUN_KILLS, GIVEN_KILLS, REPLAY_KILLS = 14, 26, 24
RUN_PARTS, GIVEN_PARTS = 2, 3
"""The kills of runs with an engine are dealt to so many tests: `-k part-1` makes those of one of each kind."""
TAGS = ("iter1-compressed", "iter1-expanded")


def equal(one: RealRun, other: RealRun) -> bool:
    """Bit for bit: exported weights of every phase end, metric records but for times, evaluations."""
    return same_training(one, other) and one.evaluations() == other.evaluations()


def same_training(one: RealRun, other: RealRun) -> bool:
    return (all(same_weights(one.weights(tag), other.weights(tag)) for tag in TAGS)
            and one.comparable() == other.comparable())


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
def engine(runs: Path) -> Iterator[ByHand]:
    """As the runs start their own."""
    engine = ByHand(runs, *TINY)
    try:
        engine.until_healthy()
        yield engine
    finally:
        engine.end()


@pytest.fixture(scope="module")
def undisturbed(runs: Path, stages: Stages, engine: ByHand) -> RealRun:
    """The tiny run, never killed; from it is known how long each stage takes."""
    one = tiny_run(runs, "undisturbed", stages, Score(), engine)
    one.play(deque())
    stages.read(0)
    print("\nstages, seconds:", {stage: round(stages.seconds(stage), 4) for stage in ("loading", *STAGES)})
    assert all(stages.seconds(stage) > 0 for stage in STAGES)
    return one.run


def play(start: Callable[[int], KilledRun], kills: Sequence[Kill], same: Callable[[RealRun], bool]) -> None:
    """Run after run until the kills are done: one that ends before is followed by another."""
    began, left, played = time.monotonic(), deque(kills), 0
    while left:
        one = start(played)
        one.play(left)
        played += 1
        assert same(one.run)
    print(f"{played} runs, all equal to the one never killed; {time.monotonic() - began:.0f} s")


def test_kill_replay_anywhere(undisturbed: RealRun, stages: Stages, score: Score) -> None:
    """SIGKILL of all, the supervisor, a learner in their own stages, in replays."""
    play(lambda n: tiny_replay(undisturbed, f"replayed-{n}", stages, score), schedule(SEED, IN_REPLAY, REPLAY_KILLS),
         lambda run: same_training(run, undisturbed))


parts_of = partial(pytest.mark.parametrize, "part", ids="part-{}".format)


@parts_of(range(GIVEN_PARTS))
def test_kill_anywhere_on_a_given_engine(undisturbed: RealRun, runs: Path, stages: Stages, score: Score, engine: ByHand,
                                         part: int) -> None:
    """The further stages, and the collector in all; the engine lives on, with whatever the killed run began on it."""
    play(lambda n: tiny_run(runs, f"given-{part}-{n}", stages, score, engine),
         schedule(SEED, ON_GIVEN, GIVEN_KILLS)[part::GIVEN_PARTS], lambda run: equal(run, undisturbed))
    assert engine.process.poll() is None


@parts_of(range(RUN_PARTS))
def test_kill_anywhere(undisturbed: RealRun, runs: Path, stages: Stages, score: Score, part: int) -> None:
    """The run's own engine in every stage; and everybody while all load."""
    play(lambda n: tiny_run(runs, f"killed-{part}-{n}", stages, score),
         schedule(SEED, IN_RUN, RUN_KILLS)[part::RUN_PARTS], lambda run: equal(run, undisturbed))


def test_training_changes_the_weights(undisturbed: RealRun) -> None:
    """Negative control of the comparison above."""
    assert not same_weights(*(undisturbed.weights(tag) for tag in TAGS))
