"""The sweep after a run sees what a run can leave behind: the soak tests would notice a leak."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from engine_fleet import free_port, wait_until
from leftovers import Leftovers
from process_table import Watch
from stages import BETWEEN, LOADING, Stages

from siri_megatron.paths import RunDir

PARENT = "import subprocess, sys; subprocess.run([sys.executable, '-c', sys.argv[1]])"
HOLDER = """
import multiprocessing, socket, time
server = socket.create_server(("127.0.0.1", 0))
lock = multiprocessing.get_context("spawn").Lock()
unix = socket.socket(socket.AF_UNIX)
unix.bind(f"/tmp/siri-test-{server.getsockname()[1]}")
print(server.getsockname()[1], "/dev/shm/sem." + lock._semlock.name[1:], unix.getsockname(), flush=True)
time.sleep(60)
"""


def test_a_child_its_port_its_semaphore_and_its_socket_are_seen(tmp_path: Path) -> None:
    process = subprocess.Popen([sys.executable, "-c", PARENT, HOLDER], stdout=subprocess.PIPE, text=True)
    watch = Watch(process.pid, every_s=0.01)
    left = Leftovers(RunDir(tmp_path), watch)
    try:
        assert process.stdout
        port, *files = process.stdout.readline().split()
        # the parent, the child, and the tracker that would remove its semaphore
        wait_until(lambda: watch.seen == 3, 10, "three processes")
        left.note()
        process.kill()
        process.wait(60)
        assert f"port {port}" in left.found()
        assert [entry for entry in left.found() if entry.startswith("process ")]
        assert left.shared() == sorted(map(Path, files))
        with pytest.raises(AssertionError, match=f"(?s)left after a kill: .*process .*port {port}"):
            left.check_gone(0.2, "a kill")
    finally:
        subprocess.run(["kill", "-9", *map(str, watch.left())], check=False)
        watch.close()
        for path in left.shared():
            path.unlink()
    left.check_gone(10, "all were killed")
    assert left.shared() == []


LISTENER = """
import socket, sys, time
server = socket.create_server(("127.0.0.1", int(sys.argv[1])))
print()
time.sleep(60)
"""


@contextmanager
def listener(port: int) -> Iterator[subprocess.Popen[str]]:
    with subprocess.Popen([sys.executable, "-uc", LISTENER, str(port)], stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout
            process.stdout.readline()
            yield process
        finally:
            process.kill()


def test_a_port_that_somebody_else_took_is_not_left(tmp_path: Path) -> None:
    """A test beside this one may get a port as soon as it is free."""
    port = free_port()
    with listener(port) as process:
        watch = Watch(process.pid)
        left = Leftovers(RunDir(tmp_path), watch)
        left.note()
        watch.close()
        assert f"port {port}" in left.found()
    with listener(port):
        assert left.found() == []


def test_the_stage_is_the_innermost_that_was_entered(tmp_path: Path) -> None:
    stages = Stages(tmp_path)
    try:
        for line, now in ((None, LOADING), ("+push", "push"), ("-push", BETWEEN), ("+generation", "generation"),
                          ("+verification", "verification"), ("-verification", "generation"), ("-generation", BETWEEN),
                          ("+save", "save"), ("-save", BETWEEN)):
            if line:
                (tmp_path / "stages").open("w").write(f"7 1.5 {line}\n")
                stages.read(1.0)
            assert stages.now == now
        stages.restart()
        assert stages.now == LOADING
    finally:
        stages.close()


def test_an_announcing_process_is_heard(tmp_path: Path) -> None:
    """The real announcer around the real clock, in a process that looks like learner 0."""
    stages = Stages(tmp_path)
    package = tmp_path / "siri_megatron_learner_main.py"
    package.write_text("from siri_megatron.observe.stages import StageClock\n"
                       "with StageClock().stage('training'):\n    pass\n")
    try:
        subprocess.run([sys.executable, str(package), " siri_megatron.learner.main ", "--rank", "0", "--"], check=True,
                       timeout=60, env=stages.env({"PYTHONPATH": str(Path(__file__).resolve().parents[1])}))
        assert stages.read(1.0) == ["training"]
        assert stages.now == BETWEEN
    finally:
        stages.close()


@pytest.mark.parametrize("arguments", [("--rank", "1", "--"), ("--rank", "10", "--")])
def test_other_ranks_announce_nothing(tmp_path: Path, arguments: tuple[str, ...]) -> None:
    stages = Stages(tmp_path)
    try:
        subprocess.run([sys.executable, "-c", "from siri_megatron.observe.stages import StageClock\n"
                        "with StageClock().stage('training'):\n    pass", " siri_megatron.learner.main ", *arguments],
                       check=True, timeout=60, env=stages.env({"PYTHONPATH": str(Path(__file__).resolve().parents[1])}))
        assert stages.read(0.2) == []
    finally:
        stages.close()
