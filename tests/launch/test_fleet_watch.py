"""The supervisor and its engines: what is lost is ended whole, restarted, published; the run goes on with the rest."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import pytest
from launch_processes import Marked, command, wait_for
from test_supervisor import LONG, Run

from siri_megatron.files import read_json
from siri_megatron.observe import jsonl
from siri_megatron.rollout.fleet import accuse, confirm, withdraw

ENGINES = ("engine-0=engine,{port}", "engine-1=engine,{other}")


class FleetRun(Run):
    """A run with two stand-in engines, each of which has a detached grandchild."""

    def __init__(self, marked: Marked, root: Path, *words: str) -> None:
        super().__init__(marked, root, *words, *LONG)
        self.until("fleet").until("a step")
        confirm(self.paths, "0", [(0, 0), (1, 0)])
        self.until_states(["healthy", "healthy"])

    @property
    def fleet(self) -> dict[str, Any]:
        return read_json(self.paths.fleet) or {}

    @property
    def states(self) -> list[str]:
        return [f"{engine['state']}" + (f" {engine['incarnation']}" if engine["incarnation"] else "")
                for engine in self.fleet["engines"]]

    def until_states(self, states: list[str]) -> FleetRun:
        wait_for(lambda: self.states == states or self.process.poll() is not None, f"{states}")
        assert self.process.poll() is None, self.process.communicate()
        return self

    def told(self) -> list[tuple[int, str, str]]:
        return [(event["engine"], event["before"], event["after"]) for event in jsonl.read(self.paths.events)
                if event["kind"] in ("engine", "engine_up")]

    def of_engine(self, index: int) -> list[int]:
        """Living processes of an engine, without its guard."""
        port = self.fleet["engines"][-1 if index else 0]["url"].rpartition(":")[2]
        return [pid for pid in self.marked.named("engine") if port in command(pid)]

    def still_trains(self) -> None:
        step = jsonl.read(self.paths.metrics)[-1]["step"]
        wait_for(lambda: jsonl.read(self.paths.metrics)[-1]["step"] > step, "another step")


def test_killed_engine_is_restarted_and_serves_after_the_next_push(marked: Marked, tmp_path: Path) -> None:
    run = FleetRun(marked, tmp_path, *ENGINES)
    before = run.of_engine(0)
    assert len(before) == 2
    os.kill(run.pid_of("engine-0"), signal.SIGKILL)
    run.until_states(["healthy"])
    assert run.fleet["epoch"] == 2
    run.until_states(["stale 1", "healthy"])
    assert run.fleet["epoch"] == 3
    assert run.fleet["engines"][0]["pid"] == run.pid_of("engine-0")
    after = run.of_engine(0)
    assert (len(after), set(after) & set(before)) == (2, set())
    confirm(run.paths, "1", [(0, 1), (1, 0)])
    run.until_states(["healthy 1", "healthy"])
    assert run.fleet["epoch"] == 3
    run.still_trains()
    assert [one[1:] for one in run.told() if one[0] == 0] == [  # every transition is an event
        ("starting", "stale"), ("stale", "healthy"), ("healthy", "dead"), ("dead", "restarting"),
        ("restarting", "stale"), ("stale", "healthy")]
    lost = next(event for event in jsonl.read(run.paths.events) if event["kind"] == "engine")
    assert lost["message"] == "engine-0 healthy → dead: was killed by SIGKILL (out of memory, or by hand)"
    withdraw(run.paths)  # a push has failed half-way: the whole fleet is stale, but nobody has left it
    run.until_states(["stale 1", "stale"])
    assert run.fleet["epoch"] == 3
    assert run.signal(signal.SIGTERM).end()["status"] == "interrupted"


@pytest.mark.parametrize("how", ["stopped", "accused"])
def test_hanging_engine_is_ended_with_its_tree_and_restarted(marked: Marked, tmp_path: Path, how: str) -> None:
    """Stopped: it does not answer. Accused: it answers /health, yet did not do its part of a push."""
    run = FleetRun(marked, tmp_path, *ENGINES, "dead_s=5" if how == "stopped" else "dead_s=60")
    before = run.of_engine(1)
    if how == "stopped":
        os.kill(run.pid_of("engine-1"), signal.SIGSTOP)
    else:
        accuse(run.paths, (1, 0), "it slept in a push")
    run.until_states(["healthy", "stale 1"])
    assert not set(before) & set(run.of_engine(1))
    assert len(run.of_engine(1)) == 2
    path = [one[2] for one in run.told() if one[0] == 1]
    assert path[-3:] == ["dead", "restarting", "stale"]
    assert ("suspect" in path) == (how == "stopped")
    run.still_trains()
    run.signal(signal.SIGTERM).end()


def test_killed_guard_of_an_engine_leaves_no_process_beside_the_restarted_one(marked: Marked, tmp_path: Path) -> None:
    run = FleetRun(marked, tmp_path, *ENGINES)
    before = run.of_engine(0)
    port = run.fleet["engines"][0]["url"].rpartition(":")[2]
    guards = [pid for pid in marked.living() if {port, "siri_megatron.launch.guard"} <= set(command(pid))]
    os.kill(guards[0], signal.SIGKILL)
    run.until_states(["stale 1", "healthy"])
    assert not set(before) & set(run.of_engine(0))
    run.signal(signal.SIGTERM).end()


def test_engine_that_cannot_come_back_is_retired_and_the_run_goes_on(marked: Marked, tmp_path: Path) -> None:
    run = FleetRun(marked, tmp_path, "engine-0=engine-once,{port},{root}/started", ENGINES[1])
    os.kill(run.pid_of("engine-0"), signal.SIGKILL)
    wait_for(lambda: (0, "dead", "retired") in run.told(), "engine 0 to be given up")
    assert run.told().count((0, "dead", "restarting")) == 2
    assert run.states == ["healthy"]
    run.still_trains()
    run.signal(signal.SIGTERM).end()


@pytest.mark.parametrize("least", [pytest.param(1, marks=pytest.mark.soak), 2])
def test_too_few_engines_end_the_run_and_say_which_where_and_why(marked: Marked, tmp_path: Path, least: int) -> None:
    run = FleetRun(marked, tmp_path, *ENGINES, f"min={least}")
    for role in ("engine-1", "engine-0")[:3 - least]:
        os.kill(run.pid_of(role), signal.SIGKILL)
    result = run.end()
    assert (run.code, result["status"]) == (3, "failed")
    assert result["reason"].startswith(("engine-0: was killed by SIGKILL", "engine-1: was killed by SIGKILL"))
    assert f"engines.min_engines={least} of 2 engines are up; now it is {least - 1}" in result["reason"]
    assert len(result["failures"]) == 3 - least
    assert "engine-1.log" in str(result["failures"])


@pytest.mark.soak
def test_no_engine_at_all_is_allowed_if_it_may_come_back(marked: Marked, tmp_path: Path) -> None:
    run = FleetRun(marked, tmp_path, *ENGINES, "min=0")
    for role in ("engine-0", "engine-1"):
        os.kill(run.pid_of(role), signal.SIGKILL)
    run.until_states(["stale 1", "stale 1"])
    run.still_trains()
    run.signal(signal.SIGTERM).end()


def test_killed_supervisor_leaves_nothing_of_a_restarted_engine(marked: Marked, tmp_path: Path) -> None:
    run = FleetRun(marked, tmp_path, *ENGINES)
    os.kill(run.pid_of("engine-0"), signal.SIGKILL)
    run.until_states(["stale 1", "healthy"])
    run.process.kill()
    run.process.wait(60)
    wait_for(lambda: not marked.living(), "every process to end")
