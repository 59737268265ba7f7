"""`siri engine` and what it started end together."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from engine_fleet import wait_until
from process_table import descendants, living

from siri_megatron.launch import procfs
from siri_megatron.launch.shared_memory import made_by

STAND_IN = '''
import sys
from argparse import Namespace
from siri_megatron.launch import engine_command
from siri_megatron.rollout.engine_args import EngineLaunch

SERVER = """
import mmap, os, sys, time
if not os.fork():
    with open(sys.argv[1], "w+b") as file:
        file.truncate(4096)
        held = mmap.mmap(file.fileno(), 4096)
        time.sleep(600)
time.sleep(600)
"""
argv = (sys.executable, "-c", SERVER, *sys.argv[1:])
engine_command.launch_of = lambda args: EngineLaunch(argv=argv, env={})
sys.exit(engine_command.engine(Namespace()))
'''
SHARED = Path(f"/dev/shm/psm_engine_{os.getpid()}")


@pytest.fixture
def command() -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen([sys.executable, "-c", STAND_IN, str(SHARED)]) as process:
        try:
            wait_until(lambda: made_by(procfs.descendants(process.pid)), 60.0, "a core with its shared memory")
            yield process
        finally:
            process.kill()
    SHARED.unlink(missing_ok=True)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_nothing_is_left(command: subprocess.Popen[bytes], number: signal.Signals) -> None:
    started = set(descendants(command.pid))
    command.send_signal(number)
    status = command.wait(timeout=60)
    wait_until(lambda: not started & set(living()), 30.0, "everything to be gone")
    wait_until(lambda: not SHARED.exists(), 30.0, "its shared memory to be gone")
    assert status == (-signal.SIGKILL if number == signal.SIGKILL else 128 + signal.SIGTERM)


def test_nothing_is_left_when_the_guard_is_killed(command: subprocess.Popen[bytes]) -> None:
    """The core lives on then: it is found by the launch tag."""
    started = set(descendants(command.pid))
    os.kill(procfs.descendants(command.pid)[0], signal.SIGKILL)
    command.wait(timeout=60)
    wait_until(lambda: not started & set(living()), 30.0, "everything to be gone")
    assert not SHARED.exists()
