"""Pulses: who hangs is seen, and nobody else."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st
from launch_processes import fill

from siri_megatron.launch.pulse import BEGIN, BLINK_S, PULSE_S, Pulses, beating, clear_pulses, read_pulses
from siri_megatron.paths import RunDir

ROLES = ("learner-0", "collector")


@given(st.lists(st.tuples(st.sampled_from([0.5, 1.0, 4.0, 60.0]), st.booleans(), st.booleans())))
def test_silent_is_unchanged_and_unwatched_is_not_silent(looks: list[tuple[float, bool, bool]]) -> None:
    """Oracle: of each role the watched seconds since its number changed, added up. Before its first one it may be
    silent for longer (slow_to_begin)."""
    now, pulses = 100.0, Pulses(100.0)
    pulses.look({}, ROLES, now)
    counts, silent = dict.fromkeys(ROLES, 0), dict.fromkeys(ROLES, 0.0)
    for gap, *beats in looks:
        now += gap
        for role, beat in zip(ROLES, beats, strict=True):
            counts[role] += beat
            silent[role] = 0.0 if beat else silent[role] + (gap if gap <= BLINK_S else 0.0)
        pulses.look({role: str(count) for role, count in counts.items() if count}, ROLES, now)
        for limit in (0.0, 0.3, 3.0):
            assert pulses.silent(limit) == {role: value for role, value in silent.items()
                                            if value > (limit if counts[role] else BEGIN * limit)}


def test_a_living_process_beats_until_it_is_done(tmp_path: Path) -> None:
    paths = RunDir(tmp_path)
    with beating(paths, "driver"):
        assert set(map(int, read_pulses(paths, ["driver", "other"]).values())) == {1}  # at once
        assert seen_until_two(paths) == {1, 2}
    clear_pulses(paths)
    assert read_pulses(paths, ["driver"]) == {}


def test_a_disk_that_fills_up_stops_no_pulse(disk: Callable[..., Path]) -> None:
    """The file's room is never given back, so nobody else can take it."""
    root = disk("size=64k")
    with beating(RunDir(root), "driver"):
        fill(root)
        assert seen_until_two(RunDir(root), lambda: fill(root)) == {1, 2}


def test_a_file_without_a_number_is_no_pulse(tmp_path: Path) -> None:
    paths = RunDir(tmp_path)
    paths.pulses.mkdir()
    (paths.pulses / "driver").touch()
    assert read_pulses(paths, ["driver"]) == {}


def seen_until_two(paths: RunDir, meanwhile: Callable[[], object] = lambda: None) -> set[int]:
    """Every number that was read; there is one at every look."""
    seen: set[int] = set()
    end = time.monotonic() + 20 * PULSE_S
    while len(seen) < 2 and time.monotonic() < end:
        seen.add(int(read_pulses(paths, ["driver"])["driver"]))
        meanwhile()
    return seen
