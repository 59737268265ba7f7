"""A run on an engine that somebody else started, and that ends and comes back in the midst of it."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from engine_fleet import free_port, wait_until
from real_run import REPO, SIRI, SMALL, RealRun, command, same_weights

from siri_megatron.files import read_json
from siri_megatron.launch import procfs
from siri_megatron.launch.fleet import healthy
from siri_megatron.observe import jsonl
from siri_megatron.paths import RunDir

pytestmark = pytest.mark.engine
START_S, END_S = 300.0, 600.0


class ByHand:
    """An engine started with `siri engine`, on one core as each of the run's own two is."""

    def __init__(self, place: Path) -> None:
        self.key_file, self.port, self.log = place / "key", free_port(), place / "by-hand.log"
        self.url = f"http://127.0.0.1:{self.port}"
        self.start()

    def start(self) -> None:
        core, config = min(os.sched_getaffinity(0)), REPO / "configs" / "tiny.yaml"
        argv = ["taskset", "-c", str(core), str(SIRI), "engine", str(config), "learner.pin_cores=false",
                "--port", str(self.port), "--key-file", str(self.key_file)]
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(argv, cwd=REPO, stdout=log, stderr=subprocess.STDOUT)

    def until_healthy(self) -> None:
        wait_until(lambda: self.process.poll() is not None or self.healthy(), START_S, "the engine by hand", 0.5)
        assert self.process.poll() is None, self.log.read_text()[-3000:]

    def healthy(self) -> bool:
        return self.key_file.exists() and healthy(self.url, self.key_file.read_text())

    def kill(self) -> None:
        """With its tree: vLLM's engine core outlives a server that is killed."""
        tree = procfs.descendants(self.process.pid)
        self.process.kill()
        procfs.send(tree, signal.SIGKILL)
        self.process.wait()


@pytest.fixture(scope="module")
def by_hand(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ByHand]:
    engine = ByHand(tmp_path_factory.mktemp("by-hand"))
    try:
        engine.until_healthy()
        yield engine
    finally:
        engine.kill()


@pytest.fixture(scope="module")
def run(by_hand: ByHand, runs: Path) -> RealRun:
    """Four steps; the engine is killed in the generation of the second and started again by hand."""
    paths, log = RunDir(runs / "given"), runs / "given.log"
    overrides = (f"engines.urls=[{by_hand.url}]", "engines.count=1", f"engines.key_file={by_hand.key_file}",
                 "engines.min_engines=0")
    with log.open("wb") as output:
        process = subprocess.Popen(command("tiny.yaml", runs, "given", *SMALL, *overrides), cwd=REPO, stdout=output,
                                   stderr=subprocess.STDOUT)
    try:
        wait_until(lambda: process.poll() is not None or any(paths.ledger.glob("step-000001*")), START_S,
                   "the second step to be generated", every_s=0.01)
        assert process.poll() is None, log.read_text()
        by_hand.kill()
        by_hand.start()
        process.wait(END_S)
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(60)
    assert process.returncode == 0, log.read_text()
    return RealRun(paths)


def test_ends_with_the_weights_of_a_run_with_engines_of_its_own(run: RealRun, resumed: RealRun) -> None:
    for tag in ("iter1-compressed", "iter1-expanded"):
        assert same_weights(run.weights(tag), resumed.weights(tag))


def test_the_engine_came_back_and_was_pushed_again(run: RealRun) -> None:
    moves = [(event["before"], event["after"]) for event in jsonl.read(run.paths.events)
             if event["kind"] in ("engine", "engine_up")]
    assert ("healthy", "dead") in moves
    assert moves[moves.index(("dead", "restarting")):][:3] == [
        ("dead", "restarting"), ("restarting", "stale"), ("stale", "healthy")]
    engines = (read_json(run.paths.fleet) or {})["engines"]
    assert [(engine["incarnation"], engine["pid"], engine["tp"]) for engine in engines] == [(1, 0, 1)]


def test_the_run_has_their_key_and_leaves_the_engine_alone(run: RealRun, by_hand: ByHand) -> None:
    assert run.paths.key.read_text() == by_hand.key_file.read_text()
    assert by_hand.process.poll() is None
    assert by_hand.healthy()
