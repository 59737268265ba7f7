"""`siri launch local` and signals: the head has each once and takes its time, and nobody is left behind.

In place of supervisor and agents: shell scripts.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from launch_processes import wait_for

from siri_megatron import config as configs
from siri_megatron.launch import procfs
from siri_megatron.launch.job import Place, make_job
from siri_megatron.launch.spec import PACKAGE_ROOT
from siri_megatron.nemo.task import Task, local_text

Ending = Callable[["subprocess.Popen[bytes]"], None]
LIMIT_S = 120
TWO = ("launch.nodes=2", "push.backend=gloo")
STAND_IN = """#!/bin/bash
for last; do :; done
if [[ $last == 1 ]]; then # an agent: signals are the head's business
    trap '' INT TERM
    echo $$ >{place}/agent.pid
    touch {place}/agent
    until [[ -e {place}/committed ]]; do sleep 0.1; done
    sleep 0.5
    touch {place}/agent-ended
    exit 0
fi
trap 'echo signal >>{place}/signals' INT TERM
echo $$ >{place}/head.pid
touch {place}/head
until [[ -e {place}/signals ]]; do sleep 0.1; done
sleep 1.5
touch {place}/committed
exit 130
"""


@pytest.fixture(params=[(), TWO], ids=["one", "two"])
def nodes(request: pytest.FixtureRequest) -> tuple[str, ...]:
    return tuple(request.param)


@pytest.fixture
def stand_in(tmp_path: Path) -> str:
    path = tmp_path / "python"
    path.write_text(STAND_IN.format(place=tmp_path))
    path.chmod(0o755)
    return str(path)


@pytest.mark.parametrize("end", [
    pytest.param(lambda it: os.killpg(it.pid, signal.SIGINT), id="ctrl-c"),  # a terminal's: to the whole group
    pytest.param(lambda it: os.kill(it.pid, signal.SIGTERM), id="term")])
def test_a_signal_reaches_the_head_once(tmp_path: Path, stand_in: str, nodes: tuple[str, ...],
                                        end: Ending) -> None:
    check_end(tmp_path, nodes, end, local_command(tmp_path, stand_in, nodes))


def test_within_nemo_run(tmp_path: Path, stand_in: str, nodes: tuple[str, ...]) -> None:
    """Its script ends by SIGTERM to the group."""
    config = configs.load(PACKAGE_ROOT / "configs" / "tiny.yaml", [f"runs_dir={tmp_path}", *nodes])
    task = Task("tiny", make_job(config, Place(PACKAGE_ROOT, stand_in)))
    text = local_text(task, 5000, tmp_path / "stamps")
    check_end(tmp_path, nodes, lambda it: os.killpg(it.pid, signal.SIGTERM), ["bash", "-c", text])
    assert (tmp_path / "stamps" / "tiny.status").read_text() == "130\n"


def test_who_is_stopped_is_waited_for(tmp_path: Path, stand_in: str) -> None:
    """Bash's `wait` also returns when a process is stopped, say by a debugger: that is not its end."""

    def end(launcher: subprocess.Popen[bytes]) -> None:
        launcher.send_signal(signal.SIGTERM)
        wait_for((tmp_path / "signals").exists, "the signal", LIMIT_S)
        head, agent = (int((tmp_path / f"{name}.pid").read_text()) for name in ("head", "agent"))
        for pid in (agent, head):
            os.kill(pid, signal.SIGSTOP)
        for pid in (head, agent):
            time.sleep(1.0)
            assert launcher.poll() is None
            os.kill(pid, signal.SIGCONT)
            wait_for(lambda pid=pid: pid not in procfs.parents(), "it to end", LIMIT_S)

    check_end(tmp_path, TWO, end, local_command(tmp_path, stand_in, TWO))


def local_command(place: Path, stand_in: str, nodes: tuple[str, ...]) -> list[str]:
    return [sys.executable, "-m", "siri_megatron.cli", "launch", "local", "configs/tiny.yaml", f"runs_dir={place}",
            f"launch.python={stand_in}", *nodes]


def check_end(place: Path, nodes: tuple[str, ...], end: Ending, command: list[str]) -> None:
    """Start it, end it when all stand-ins run, look at what they have written."""
    launched = subprocess.Popen(command, cwd=PACKAGE_ROOT, start_new_session=True,
                                env=os.environ | {"PYTHONPATH": str(PACKAGE_ROOT)})
    for name in ("head", "agent") if nodes else ("head",):
        wait_for((place / name).exists, "the stand-ins to start", LIMIT_S)
    end(launched)
    assert launched.wait(LIMIT_S) == 130
    assert (place / "committed").exists(), "it was given its time"
    assert (place / "signals").read_text().split() == ["signal"], "a second one would end it at once"
    assert (place / "agent-ended").exists() == bool(nodes), "nobody is left behind"
