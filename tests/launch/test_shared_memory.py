"""What processes leave that were all killed at once is found and removed (semaphores, sockets), others' files not."""

from __future__ import annotations

import mmap
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from siri_megatron.launch.shared_memory import note_shared, remove_shared
from siri_megatron.launch.sockets import private_sockets

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
    note_shared(tmp_path / "shared.json", "tag", [process.pid, 2**22 + 1])
    os.kill(int(tracker), signal.SIGKILL)
    process.kill()
    process.wait(60)
    yield Path(name)
    Path(name).unlink(missing_ok=True)


def test_semaphore_of_killed_processes_is_removed(tmp_path: Path, killed: Path) -> None:
    assert killed.exists()
    note_shared(tmp_path / "shared.json", "tag", [])  # what was noted once stays noted
    remove_shared(tmp_path / "shared.json")
    assert not killed.exists()
    assert os.listdir(tmp_path) == []


def test_sockets_of_a_launch_are_removed_by_its_tag(tmp_path: Path) -> None:
    """An agent beside it on this machine has another tag, of which this one is the beginning."""
    with private_sockets("f00") as gone, private_sockets("f00-1") as other:
        (place,), (neighbour,) = map(Path, gone.values()), map(Path, other.values())
        note_shared(tmp_path / "shared.json", "f00", [])
        remove_shared(tmp_path / "shared.json")
        assert (place.exists(), neighbour.exists()) == (False, True)
    assert not neighbour.exists()


def test_files_with_other_names_stay(tmp_path: Path) -> None:
    """A model in /dev/shm, say: it is mapped, but nobody made its name up."""
    path = Path("/dev/shm") / f"model-{os.getpid()}.safetensors"
    try:
        path.write_bytes(b"weights")
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ):
            note_shared(tmp_path / "shared.json", "tag", [os.getpid()])
            remove_shared(tmp_path / "shared.json")
            assert path.exists()
    finally:
        path.unlink(missing_ok=True)
