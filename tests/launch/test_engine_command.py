"""`siri engine` and what it started end together."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Iterator

import pytest
from engine_fleet import wait_until
from process_table import descendants, living

STAND_IN = """
import sys
from argparse import Namespace
from siri_megatron.launch import engine_command
from siri_megatron.rollout.engine_args import EngineLaunch

engine_command.launch_of = lambda args: EngineLaunch(argv=("sh", "-c", "sleep 600 & exec sleep 600"), env={})
sys.exit(engine_command.engine(Namespace()))
"""


@pytest.fixture
def command() -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen([sys.executable, "-c", STAND_IN]) as process:
        wait_until(lambda: len(descendants(process.pid)) >= 3, 60.0, "guard, server and core")
        yield process
        process.kill()


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_nothing_is_left(command: subprocess.Popen[bytes], number: signal.Signals) -> None:
    started = set(descendants(command.pid))
    command.send_signal(number)
    status = command.wait(timeout=60)
    wait_until(lambda: not started & set(living()), 30.0, "everything to be gone")
    assert status == (-signal.SIGKILL if number == signal.SIGKILL else 128 + signal.SIGTERM)
