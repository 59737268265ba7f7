"""A run killed anywhere, again and again, ends with the bits of one that never was."""

from __future__ import annotations

import time
from collections import Counter
from itertools import islice
from pathlib import Path

import pytest
from kills import ROLES, KilledRun, schedule
from real_run import RealRun, same_weights, siri

from siri_megatron.paths import RunDir

pytestmark = [pytest.mark.soak, pytest.mark.engine]

KILLS = 8
SEED = 3
TAGS = ("iter1-compressed", "iter1-expanded")


def equal(one: RealRun, other: RealRun) -> bool:
    """Bit for bit: exported weights of every phase end, and the metric records but for times."""
    return (all(same_weights(one.weights(tag), other.weights(tag)) for tag in TAGS)
            and one.comparable() == other.comparable())


def test_kill_anywhere(never_killed: RealRun, runs: Path) -> None:
    """SIGKILL of supervisor, learners, engines, collector; a run that ends too early is followed by another."""
    start = time.monotonic()
    kills = islice(schedule(SEED), KILLS)
    played: list[KilledRun] = []
    while sum(len(one.killed) for one in played) < KILLS:
        played.append(KilledRun(runs, f"killed-{len(played)}"))
        played[-1].play(kills)
    for one in played:
        siri("train", str(one.run.paths.config), "--replay", str(one.run.paths.root), f"name={one.name}-replay")
        assert equal(one.run, RealRun(RunDir(runs / f"{one.name}-replay")))
        assert equal(one.run, never_killed)
    assert not same_weights(*(never_killed.weights(tag) for tag in TAGS)), "training changed nothing"
    assert not list(Path("/dev/shm").glob("siri-*killed*"))
    killed = Counter(role for one in played for role in one.killed)
    print(f"\nsoak kill-anywhere: {killed.total()} kills ({', '.join(f'{role} {killed[role]}' for role in ROLES)}) in "
          f"{sum(one.attempts for one in played)} attempts at {len(played)} run(s); bits equal to the replay and to a "
          f"run never killed; slowest end of all processes {max(one.slowest_end_s for one in played):.1f} s; "
          f"the verdict named the killed process after {sum(one.named for one in played)}; "
          f"{time.monotonic() - start:.0f} s")
