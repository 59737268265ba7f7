"""Who holds a run's lock, as another one is told."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from launch_processes import fill

from siri_megatron.errors import RunFailed
from siri_megatron.launch.lock import RunLock
from siri_megatron.paths import RunDir


@pytest.mark.parametrize(("owner", "said"), [
    (f"{os.getpid()} on elsewhere", "is on elsewhere"),  # its number is that of a process here, which says nothing
    ("999999999", "is gone, but processes of its run still live"), (f"{os.getpid()}", "is running")],
    ids=["elsewhere", "gone", "here"])
def test_a_supervisor_on_another_machine_is_not_looked_for_here(tmp_path: Path, owner: str, said: str) -> None:
    paths = RunDir(tmp_path)
    with paths.lock.open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        held.write(f"{owner}\n")
        held.flush()
        with pytest.raises(RunFailed, match=f"supervisor pid {owner.split()[0]} {said}"), RunLock(paths, wait_s=0.2):
            pass


def test_the_lock_names_process_and_machine(tmp_path: Path) -> None:
    with RunLock(RunDir(tmp_path)):
        assert RunDir(tmp_path).lock.read_text() == f"{os.getpid()} on {os.uname().nodename}\n"


def test_a_disk_too_full_for_a_lock_is_named_and_holds_none(disk: Callable[..., Path]) -> None:
    root = disk("size=64k")
    taken = fill(root)
    with pytest.raises(RunFailed, match="No space left on device; 0 bytes free") as refused, RunLock(RunDir(root)):
        pass
    assert "make room" in refused.value.fix
    taken.unlink()
    with RunLock(RunDir(root), wait_s=0.0):
        pass
