"""Named semaphores of processes that were all killed at once are found and removed; files of others are not."""

from __future__ import annotations

import mmap
import os
import secrets
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from siri_megatron.launch.shared_memory import note_shared, remove_shared
from siri_megatron.launch.sockets import make_place, remove_places
from siri_megatron.paths import RunDir

TAG = "0123456789abcdef"
HOLDER = """
import multiprocessing, time
lock = multiprocessing.get_context("spawn").Lock()
print("/dev/shm/sem." + lock._semlock.name[1:], multiprocessing.resource_tracker._resource_tracker._pid, flush=True)
time.sleep(60)
"""


@pytest.fixture
def killed(tmp_path: Path) -> Iterator[Path]:
    """What a process leaves that is killed together with the one that would have tidied up; noted while it lived."""
    process = subprocess.Popen([sys.executable, "-c", HOLDER], stdout=subprocess.PIPE, text=True)
    assert process.stdout
    name, tracker = process.stdout.readline().split()
    assert Path(name).exists()
    note_shared(RunDir(tmp_path), TAG, [process.pid, 2**22 + 1])
    os.kill(int(tracker), signal.SIGKILL)
    process.kill()
    process.wait(10)
    yield Path(name)
    Path(name).unlink(missing_ok=True)


def test_semaphore_of_killed_processes_is_removed(tmp_path: Path, killed: Path) -> None:
    assert killed.exists()
    remove_shared(RunDir(tmp_path))
    assert not killed.exists()
    assert not RunDir(tmp_path).shared.exists()


def test_socket_directories_of_a_wholly_killed_launch_are_removed(tmp_path: Path) -> None:
    """Those of another launch stay."""
    tag, other = secrets.token_hex(8), secrets.token_hex(8)
    ours, others = make_place(tag, 7), make_place(other, 7)
    for place in (ours, others):
        (place / "socket").touch()
    note_shared(RunDir(tmp_path), tag, ())
    remove_shared(RunDir(tmp_path))
    assert not ours.exists()
    assert (others / "socket").exists()
    remove_places(other)
    assert not others.exists()


def test_files_with_other_names_stay(tmp_path: Path) -> None:
    """A model in /dev/shm, say: it is mapped, but nobody made its name up."""
    path = Path("/dev/shm") / f"model-{os.getpid()}.safetensors"
    try:
        path.write_bytes(b"weights")
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ):
            note_shared(RunDir(tmp_path), TAG, [os.getpid()])
            remove_shared(RunDir(tmp_path))
            assert path.exists()
    finally:
        path.unlink(missing_ok=True)
