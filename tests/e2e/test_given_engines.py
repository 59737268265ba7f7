"""A run on an engine that somebody else started, and that ends and comes back in the midst of it."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from by_hand import START_S, ByHand
from engine_fleet import wait_until
from real_run import IN_PROCESS, REPO, SMALL, RealRun, command, same_weights

from siri_megatron.files import read_json
from siri_megatron.observe import jsonl
from siri_megatron.paths import RunDir

pytestmark = pytest.mark.engine
END_S = 600.0


@pytest.fixture(scope="module")
def by_hand(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ByHand]:
    """On one core, as each of the run's own two is."""
    one_core = ("taskset", "-c", str(min(os.sched_getaffinity(0))))
    engine = ByHand(tmp_path_factory.mktemp("by-hand"), "learner.pin_cores=false", *IN_PROCESS, before=one_core)
    try:
        engine.until_healthy()
        yield engine
    finally:
        engine.end()


@pytest.fixture(scope="module")
def run(by_hand: ByHand, runs: Path) -> RealRun:
    """Four steps; the engine is killed in the generation of the second and started again by hand."""
    paths, log = RunDir(runs / "given"), runs / "given.log"
    overrides = (*by_hand.given, "engines.min_engines=0")
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
