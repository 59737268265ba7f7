"""The supervisor over two nodes: real head, real agent, stand-in children; how each end reaches the other side."""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from launch_nodes import config_of
from launch_processes import Marked, fill, wait_for
from own_ports import own_ports

from siri_megatron.cli import parse
from siri_megatron.errors import ConfigError
from siri_megatron.files import read_json, write_json
from siri_megatron.launch import procfs
from siri_megatron.launch.cluster import place_of, refusal_recorded
from siri_megatron.paths import RunDir

NODES = str(Path(__file__).with_name("launch_nodes.py"))
SECONDS_TO_END = 75


class TwoNodes:
    """Head and agent, each in a process of its own."""

    def __init__(self, marked: Marked, root: Path, *words: str,
                 meanwhile: Callable[[RunDir], None] | None = None) -> None:
        """meanwhile: done after the head has begun to wait for the agent, and before that comes."""
        self.marked, self.paths = marked, RunDir(root)
        self.port, engine = own_ports(2)
        words = tuple(word.format(port=engine, root=root) for word in words)
        self.head = marked.start(sys.executable, NODES, "head", str(root), str(self.port), str(engine), *words)
        if meanwhile:
            wait_for(self.paths.probe.exists, "the head to wait for its nodes")
            meanwhile(self.paths)
        self.agent = marked.start(sys.executable, NODES, "agent", str(root), str(self.port))

    def until_steps(self, count: int = 1) -> TwoNodes:
        def there() -> bool:
            return self.paths.metrics.exists() and len(self.paths.metrics.read_text().splitlines()) >= count

        wait_for(lambda: there() or self.head.poll() is not None, f"{count} steps")
        assert self.head.poll() is None, self.head.communicate()
        return self

    def end(self) -> dict[str, Any]:
        """The verdict, once both have ended; nothing may be left then."""
        self.code, self.agent_code = self.head.wait(SECONDS_TO_END), self.agent.wait(SECONDS_TO_END)
        wait_for(lambda: not self.marked.living(), "every process to be gone")
        return dict(json.loads(self.paths.result.read_text()))


ENGINE = "engine-0@1=engine,{port}"
QUICK = ("learner-0=learner,{root},0,5,0.05", "learner-1@1=learner,{root},1,5,0.05")
LONG = ("learner-0=learner,{root},0,1000,0.1", "learner-1@1=learner,{root},1,1000,0.1")


def test_success_on_both_nodes(marked: Marked, tmp_path: Path) -> None:
    run = TwoNodes(marked, tmp_path, ENGINE, *QUICK)
    result = run.end()
    assert (result["status"], result["step"], run.code, run.agent_code) == ("success", 5, 0, 0)
    assert (tmp_path / "logs" / "learner-1.log").exists()


def test_given_engines_serve_a_run_on_two_nodes(marked: Marked, tmp_path: Path) -> None:
    """They are watched from the head, belong to no node, and outlive the run."""
    theirs = Marked()
    try:
        [port] = own_ports(1)
        theirs.start(sys.executable, str(Path(NODES).with_name("launch_children.py")), "engine", str(port))
        run = TwoNodes(marked, tmp_path, f"engine-0=given,{port}", *LONG).until_steps()
        wait_for(run.paths.fleet.exists, "the fleet")
        run.paths.interrupt.touch()
        assert run.end()["status"] == "interrupted"
        assert theirs.named("engine")
    finally:
        theirs.kill()


def test_a_failure_on_the_other_node_is_the_runs(marked: Marked, tmp_path: Path) -> None:
    run = TwoNodes(marked, tmp_path, ENGINE, LONG[0], "learner-1@1=leaver")
    result = run.end()
    assert (result["status"], run.code) == ("failed", 3)
    assert result["failures"][0]["role"] == "learner-1"
    assert result["failures"][0]["exit_status"] == 7
    assert "learner-1: ended with status 7" in result["reason"]


def test_last_words_of_the_other_node_are_told(marked: Marked, tmp_path: Path) -> None:
    result = TwoNodes(marked, tmp_path, LONG[0], "learner-1@1=raises,{root},learner-1,siri").end()
    assert "learner-1: learner.tp=3, heads=4" in result["reason"]


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
def test_a_lost_node_makes_the_run_one_to_try_again(marked: Marked, tmp_path: Path, number: int) -> None:
    """Gone at once, or silent: hung in the kernel, or behind a cut cable."""
    run = TwoNodes(marked, tmp_path, ENGINE, *LONG).until_steps()
    run.agent.send_signal(number)
    code = run.head.wait(SECONDS_TO_END)
    result = json.loads(run.paths.result.read_text())
    if number == signal.SIGSTOP:
        run.agent.send_signal(signal.SIGCONT)
    run.end()
    assert (result["status"], code, result["exit_code"]) == ("failed", 75, 75)
    assert "was lost with its node" in result["reason"]
    assert "node 1 (" in result["reason"]
    assert any(json.loads(line)["kind"] == "node_lost" for line in run.paths.events.read_text().splitlines())


def test_shared_memory_and_sockets_of_the_other_node_are_removed(marked: Marked, tmp_path: Path) -> None:
    """Also those of an engine that was killed together with whoever would have removed them."""
    run = TwoNodes(marked, tmp_path, "engine-0@1=engine-holding,{port}", *LONG).until_steps()
    log = tmp_path / "logs" / "engine-0.log"
    wait_for(lambda: log.exists() and log.read_text().endswith("\n"), "the engine's words")
    semaphore, sockets = map(Path, log.read_text().split()[:2])
    wait_for(lambda: semaphore.name in run.paths.shared(1).read_text(), "the agent's note")
    assert (semaphore.exists(), sockets.exists()) == (True, True)
    os.kill(procfs.parents()[marked.named("engine-holding")[0]], signal.SIGKILL)  # its guard, and with it the engine
    run.paths.interrupt.touch()
    run.end()
    assert (semaphore.exists(), sockets.exists(), run.paths.shared(1).exists()) == (False, False, False)


def test_nothing_survives_a_killed_head(marked: Marked, tmp_path: Path) -> None:
    run = TwoNodes(marked, tmp_path, ENGINE, *LONG, "collector@1=tree").until_steps()
    run.head.send_signal(signal.SIGKILL)
    run.head.wait(SECONDS_TO_END)
    assert run.agent.wait(SECONDS_TO_END) == 1
    wait_for(lambda: not marked.living(), "every process to be gone")


def test_a_notice_commits_on_all_nodes(marked: Marked, tmp_path: Path) -> None:
    run = TwoNodes(marked, tmp_path, ENGINE, *LONG).until_steps(2)
    wait_for(run.paths.fleet.exists, "the fleet")
    assert json.loads(run.paths.fleet.read_text())["engines"][0]["pid"] > 0
    run.paths.interrupt.touch()
    result = run.end()
    assert (result["status"], run.code) == ("interrupted", 130)
    assert "the scheduler's notice" in result["reason"]
    assert result["committed"] == result["step"] > 0


def test_a_notice_that_comes_while_nodes_are_waited_for_is_heeded(marked: Marked, tmp_path: Path) -> None:
    """That of an earlier job is not: the head removes it as soon as the run directory is its own."""
    RunDir(tmp_path).interrupt.touch()

    def notice(paths: RunDir) -> None:
        assert not paths.interrupt.exists()
        paths.interrupt.touch()

    run = TwoNodes(marked, tmp_path, ENGINE, *LONG, meanwhile=notice)
    result = run.end()
    assert (result["status"], run.code) == ("interrupted", 130)
    assert "the scheduler's notice before training began" in result["reason"]


def test_a_stranger_is_not_obeyed(marked: Marked, tmp_path: Path) -> None:
    """An agent runs what its head says, so it must not take anybody for it."""
    [port] = own_ports(1)
    (tmp_path / ".key").write_text("the key of the run")
    agent = marked.start(sys.executable, NODES, "agent", str(tmp_path), str(port))
    with socket.create_server(("127.0.0.1", port)) as listener:
        listener.settimeout(60)
        connection, _ = listener.accept()
        with connection:
            connection.settimeout(60)
            assert b"nonce" in connection.recv(4096)
            connection.sendall(b'{"nonce": "00", "proof": "11"}\n{"start": {}, "number": 0}\n')
            assert connection.recv(4096) == b"", "it hangs up"
    os.kill(agent.pid, signal.SIGKILL)


def test_a_head_that_is_refused_frees_its_agents(marked: Marked, tmp_path: Path) -> None:
    """A verdict that appears while an agent waits ends it: the job does not linger until join_timeout_s."""
    (tmp_path / ".key").write_text("the key of the run")
    with socket.create_server(("127.0.0.1", 0)) as listener:
        agent = marked.start(sys.executable, NODES, "agent", str(tmp_path), str(listener.getsockname()[1]))
        listener.settimeout(60)
        listener.accept()[0].close()  # it waits for its head by now
    (tmp_path / "result.json").write_text("{}")
    assert agent.wait(SECONDS_TO_END) == 0


def test_a_refused_launch_leaves_a_success(tmp_path: Path) -> None:
    """It used to be overwritten. The file is a new one all the same, which the agents of that launch wait for."""
    paths = RunDir(tmp_path)

    def refused(formerly: str) -> dict[str, Any]:
        write_json(paths.result, {"status": formerly, "step": 4, "exit_code": 0})
        before = paths.result.stat().st_ino
        with pytest.raises(ConfigError), refusal_recorded(paths):
            raise ConfigError("budget.l_max=64, but the run began with 128")
        assert paths.result.stat().st_ino != before
        return read_json(paths.result) or {}

    kept, replaced = refused("success"), refused("interrupted")
    assert (kept["status"], kept["step"], kept["exit_code"]) == ("success", 4, 0)
    assert "l_max=64" in kept["refused"]
    assert (replaced["status"], replaced["exit_code"]) == ("failed", 2)
    assert "l_max=64" in replaced["reason"]


def test_a_refusal_on_a_full_disk_is_told_all_the_same(disk: Callable[..., Path]) -> None:
    """As of a resume before enough room was made: result.json cannot be written."""
    root = disk("size=64k")
    fill(root)
    with pytest.raises(ConfigError, match="l_max=64"), refusal_recorded(RunDir(root)):
        raise ConfigError("budget.l_max=64, but the run began with 128")


PLACES = [(["--nodes", "2"], "--head"), (["--nodes", "3", "--head", "a:1"], "launch.nodes=2"),
          (["--nodes", "2", "--head", "a:1", "--node", "2"], "0..1"), ([], "siri launch slurm"),
          (["--nodes", "2", "--head", "a:1", "--fresh"], "--fresh")]


@pytest.mark.parametrize(("flags", "said"), PLACES)
def test_a_place_that_does_not_suit_the_config_is_refused(tmp_path: Path, flags: list[str], said: str) -> None:
    with pytest.raises(ConfigError) as refused:
        place_of(parse(["train", "tiny.yaml", *flags]), config_of(tmp_path / "run"))
    assert said in refused.value.render()


def test_dry_runs_and_replays_need_no_place(tmp_path: Path) -> None:
    for flags in (["--dry-run"], ["--replay", "x"], ["--rollout-only"]):
        assert place_of(parse(["train", "tiny.yaml", *flags]), config_of(tmp_path / "run")) is None
