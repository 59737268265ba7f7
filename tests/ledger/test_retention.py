"""Which ledger steps go, and that a killed removal leaves a whole step or none."""

from __future__ import annotations

import errno
import os
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rows import IDENTITY, STAMP, rollout

from siri_megatron.ledger.read import closed_steps, open_step, ranges
from siri_megatron.ledger.recover import recover
from siri_megatron.ledger.retention import REMOVED, removable, remove_steps
from siri_megatron.ledger.write import StepWriter


def ledger(root: Path, steps: int) -> Path:
    for step in range(steps):
        stamp = replace(STAMP, step=step)
        writer = StepWriter(root, stamp, IDENTITY)
        writer.append([rollout(0, sample, stamp=stamp) for sample in range(2)])
        writer.close()
    return root


@given(st.sets(st.integers(0, 60)), st.integers(0, 70), st.integers(1, 20))
def test_nothing_unconsumed_goes(closed: set[int], committed: int, keep: int) -> None:
    gone = removable(sorted(closed), committed, keep)
    stays = closed.difference(gone)
    assert stays >= {step for step in closed if step >= committed - keep}
    assert len([step for step in stays if step < committed]) <= keep  # and nothing else is kept
    assert removable(sorted(stays), committed, keep) == []


def test_everything_by_default() -> None:
    assert removable(range(9), 9, None) == []


def test_removed_steps_are_gone_and_the_others_whole(tmp_path: Path) -> None:
    root = ledger(tmp_path, 6)
    remove_steps(root, removable(closed_steps(root), 5, 2))
    assert closed_steps(root) == [3, 4, 5]
    assert [len(open_step(root, step)) for step in (3, 4, 5)] == [2, 2, 2]
    assert sorted(path.name for path in root.iterdir()) == ["step-000003", "step-000004", "step-000005"]


def test_whole_or_gone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed before each deletion of a file: whatever is listed as a step can be read."""
    real = shutil.rmtree

    def dies(path: Any, *rest: Any, **more: Any) -> None:
        next(iter(path.iterdir())).unlink()
        raise KeyboardInterrupt

    root = ledger(tmp_path, 4)
    monkeypatch.setattr(shutil, "rmtree", dies)
    with pytest.raises(KeyboardInterrupt):
        remove_steps(root, [0, 1])
    monkeypatch.setattr(shutil, "rmtree", real)
    assert closed_steps(root) == [2, 3]
    assert all(len(open_step(root, step)) == 2 for step in (2, 3))
    assert {path.name for path in root.glob(f"*{REMOVED}")} == {"step-000000.removed", "step-000001.removed"}
    assert recover(root) == ["removed what was left of step-000000", "removed what was left of step-000001"]
    assert recover(root) == []


def test_what_cannot_be_removed_now_stays_for_the_next_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file that somebody holds open on NFS, a directory that is read-only: no run ends, no start is refused."""
    root = ledger(tmp_path, 4)

    def busy(path: Any, *rest: Any, **more: Any) -> None:
        raise OSError(errno.EBUSY, "Device or resource busy", str(path))

    with monkeypatch.context() as patch:
        patch.setattr(os, "rmdir", busy)
        remove_steps(root, [0, 1])
        assert recover(root) == []
        patch.setattr(os, "rename", busy)
        remove_steps(root, [2])
    assert closed_steps(root) == [2, 3]
    assert recover(root) == ["removed what was left of step-000000", "removed what was left of step-000001"]


@pytest.mark.parametrize(("steps", "said"), [([], ""), ([3], "3"), ([0, 1, 2, 4, 6, 7], "0..2, 4, 6..7")])
def test_ranges(steps: list[int], said: str) -> None:
    assert ranges(steps) == said
