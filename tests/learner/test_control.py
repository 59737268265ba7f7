"""The control plane: messages, bounded waits, a dead or silent rank 0, and no wait inside a collective."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from models import write_model
from ranks import Rank, RankFailed, run_ranks

from siri_megatron.config import AlgorithmConfig, LearnerConfig, ModelConfig, OptimizerConfig
from siri_megatron.errors import RunFailed
from siri_megatron.learner.control import ControlPlane
from siri_megatron.learner.settings import LearnerSettings
from siri_megatron.paths import RunDir

QUICK = LearnerConfig(tp=2, collective_timeout_s=3.0, heartbeat_timeout_s=1.5, control_timeout_s=20.0)


@pytest.fixture
def run_dir(tmp_path: Path) -> RunDir:
    return RunDir(tmp_path)


@pytest.fixture
def two_ends(run_dir: RunDir) -> Iterator[tuple[ControlPlane, ControlPlane]]:
    """Rank 0 and rank 1 of two, in this process."""
    ends = [ControlPlane.open(run_dir, rank, 2, QUICK) for rank in range(2)]
    yield ends[0], ends[1]
    for end in reversed(ends):
        end.close()


def test_messages_arrive_whole(two_ends: tuple[ControlPlane, ControlPlane]) -> None:
    value = {"rows": list(range(5000)), "text": "Grüße", "none": None, "x": 0.1}
    two_ends[0].publish("plan-3", value)
    assert two_ends[1].receive("plan-3") == value


def test_a_decision_is_shared(two_ends: tuple[ControlPlane, ControlPlane]) -> None:
    assert two_ends[0].share("stop-4", lambda: [True, None]) == [True, None]
    assert two_ends[1].share("stop-4", lambda: pytest.fail("rank 1 decides nothing")) == [True, None]


def test_reports_reach_rank_0(two_ends: tuple[ControlPlane, ControlPlane]) -> None:
    """Asking does not wait, collecting is bounded and names who is missing, and the name may be used again."""
    zero, one = two_ends
    for value in ("first", "second"):
        assert not zero.all_reported("save-7")
        zero.report("save-7", None)
        with pytest.raises(RunFailed, match=r"saving: ranks \[1\] did not report within 0.1 s"):
            zero.reports("save-7", timeout_s=0.1, what="saving")
        one.report("save-7", value)
        assert zero.all_reported("save-7")
        assert zero.reports("save-7", timeout_s=0.1, what="saving") == [None, value]



def test_read_by_all_then_gone(two_ends: tuple[ControlPlane, ControlPlane]) -> None:
    for value in (1, 2):
        two_ends[0].publish("again", value)
        assert two_ends[1].receive("again") == value
    with pytest.raises(RunFailed, match=r"'again' from rank 0: nothing within 0.2 s"):
        two_ends[1].receive("again", timeout_s=0.2)


def test_a_name_that_is_used_again_overwrites_nothing(run_dir: RunDir) -> None:
    """As in a push that is repeated: rank 0 is at the second attempt before a slow rank has read of the first."""
    ends = [ControlPlane.open(run_dir, rank, 3, QUICK) for rank in range(3)]
    ends[0].publish("push-7", False)
    assert ends[1].receive("push-7") is False
    ends[0].publish("push-7", True)
    assert [ends[2].receive("push-7", timeout_s=1.0) for _ in range(2)] == [False, True]
    assert ends[1].receive("push-7", timeout_s=1.0) is True
    for end in reversed(ends):
        end.close()


def test_a_groups_store_waits_as_long_as_its_collectives(two_ends: tuple[ControlPlane, ControlPlane]) -> None:
    """NCCL makes a communicator at its first use: who comes first waits in the store for the id that the group's first
    rank puts there, with the store's own time limit (PyTorch#107177)."""
    for end in two_ends:
        assert end.store().timeout.total_seconds() == QUICK.collective_timeout_s


def test_loopback_only(two_ends: tuple[ControlPlane, ControlPlane], run_dir: RunDir) -> None:
    """TCPStore by itself listens on every interface."""
    port = json.loads(run_dir.rendezvous.read_text())["port"]
    lines = (Path("/proc/net/tcp").read_text() + Path("/proc/net/tcp6").read_text()).splitlines()
    sockets = [line.split()[1:4] for line in lines]  # local address, remote address, state; 0A: listening
    assert [local for local, _, state in sockets if local.endswith(f":{port:04X}") and state == "0A"] == [
        f"0100007F:{port:04X}"]


def test_no_stale_address(run_dir: RunDir) -> None:
    """rendezvous.json of an earlier attempt names a closed port, or the port of someone else."""
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    run_dir.rendezvous.write_text(json.dumps({"host": "127.0.0.1", "port": port, "token": "old"}))
    ends: list[ControlPlane] = []
    joining = threading.Thread(target=lambda: ends.append(ControlPlane.open(run_dir, 1, 2, QUICK)))
    joining.start()
    time.sleep(0.2)
    host = ControlPlane.open(run_dir, 0, 2, QUICK)
    joining.join(10)
    host.publish("hello", 1)
    assert ends[0].receive("hello") == 1
    ends[0].close()
    host.close()


def test_no_address_within_the_timeout(run_dir: RunDir) -> None:
    with pytest.raises(RunFailed, match="no live control store"):
        ControlPlane.open(run_dir, 1, 2, LearnerConfig(control_timeout_s=0.3))


HOST = """
import sys, time
from pathlib import Path
from siri_megatron.config import LearnerConfig
from siri_megatron.learner.control import ControlPlane
from siri_megatron.paths import RunDir
control = ControlPlane.open(RunDir(Path(sys.argv[1])), 0, 2, LearnerConfig(heartbeat_timeout_s=1.5))
control.publish("ready", True)
time.sleep(60)
"""


@pytest.fixture
def other_rank0(run_dir: RunDir) -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen([sys.executable, "-c", HOST, str(run_dir.root)])
    yield process
    process.kill()
    process.wait(60)


def test_a_killed_rank0_is_noticed(run_dir: RunDir, other_rank0: subprocess.Popen[bytes]) -> None:
    control = ControlPlane.open(run_dir, 1, 2, QUICK)
    assert control.receive("ready")
    os.kill(other_rank0.pid, signal.SIGKILL)
    with pytest.raises(RunFailed, match="waits for 'plan-1' from rank 0, but the connection broke"):
        control.receive("plan-1")


def test_a_silent_heartbeat_is_noticed(two_ends: tuple[ControlPlane, ControlPlane]) -> None:
    two_ends[0]._stopped.set()  # rank 0's beating thread ends; its store still answers
    with pytest.raises(RunFailed, match=r"'plan-1' from rank 0, whose heartbeat has been silent for"):
        two_ends[1].receive("plan-1")


def quick_settings(path: Path) -> LearnerSettings:
    return LearnerSettings(ModelConfig(path=path), QUICK, OptimizerConfig(lr=1e-3), AlgorithmConfig(), 1.0, "packed",
                           160, 64, 1)


def waits_at_the_control_plane(rank: Rank, path: Path, seconds: float) -> list[list[float]]:
    """As in a run: rank 0 waits for the engines, the others for rank 0; then all train."""
    given = quick_settings(path)
    with rank.control(given.layout) as control:
        from siri_megatron.learner.learner import Learner
        learner = Learner(given, control)
        if learner.is_rank0:
            time.sleep(seconds)
            control.publish("collected-0", {})
        else:
            control.receive("collected-0")
        found = learner.logprobs([([1, 2], [3, 4, 5])])
        learner.close()
        return found


def waits_in_a_collective(rank: Rank, path: Path, seconds: float) -> None:
    import torch
    import torch.distributed as dist
    with rank.learner(quick_settings(path)):
        if rank.rank == 0:
            time.sleep(seconds)
        dist.all_reduce(torch.zeros(1))


def test_a_long_generation_trips_no_collective(tmp_path: Path) -> None:
    """The wait is longer than the collectives' timeout; waiting in one of them (the control) fails."""
    path = write_model(tmp_path / "model")
    found = run_ranks(waits_at_the_control_plane, 2, path, 5.0)
    assert found[0] == found[1]
    with pytest.raises(RankFailed, match=r"(?i)timed out|timeout"):
        run_ranks(waits_in_a_collective, 2, path, 5.0)

