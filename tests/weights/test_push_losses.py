"""An engine is stopped or killed in mid-push: it is named and ended, the others get the weights, it comes back.

Real engines under the supervisor's own watch. The stock client of vLLM would wait for a stopped server for ever.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from engine_fleet import EngineFleet, alone, fleet_config, running_fleet, wait_until, watched_fleet, write_tiny_model
from hf_reference import randomised
from ranks import Rank, RankFailed, run_ranks
from test_push import TOLERANCE, ModelSource, worst_difference
from test_push_from_learner import settings

from siri_megatron.files import read_json, write_json
from siri_megatron.launch import procfs
from siri_megatron.learner.settings import LearnerSettings
from siri_megatron.observe import jsonl
from siri_megatron.paths import RunDir
from siri_megatron.rollout.fleet import accusations, read_fleet, read_pushed
from siri_megatron.weights import senders
from siri_megatron.weights.fleet_client import FleetClient, PushFailed
from siri_megatron.weights.push import WeightPush

TIMEOUT_S = 8.0
BACK_S = 240.0
PHASES = ("init", "start", "update", "finish", "assert_version")


@pytest.fixture
def watched(engines: EngineFleet) -> Iterator[EngineFleet]:
    """The engines that all tests share; both are up again for the next one."""
    both_up(engines)
    yield engines
    both_up(engines)


def both_up(fleet: EngineFleet) -> None:
    wait_until(lambda: len(read_fleet(fleet.run_dir).engines) == 2, BACK_S, "both engines to be up")


def push_of(fleet: EngineFleet, source: ModelSource, backend: str, tries: int = 3) -> WeightPush:
    return WeightPush(fleet.with_push(backend, TIMEOUT_S, tries), fleet.run_dir, source, alone)


def pid_of(fleet: EngineFleet, index: int) -> int:
    engines = (read_json(fleet.run_dir.fleet) or {})["engines"]
    return next(int(engine["pid"]) for engine in engines if engine["index"] == index)


def worker_of(fleet: EngineFleet, index: int, rank: int) -> int:
    """A tensor-parallel worker of an engine."""
    found = [pid for pid in procfs.descendants(pid_of(fleet, index))
             if f"Worker_TP{rank}" in Path(f"/proc/{pid}/cmdline").read_text()]
    assert len(found) == 1, found
    return found[0]


def hit_once(monkeypatch: pytest.MonkeyPatch, phase: str, hit: Callable[[], None]) -> None:
    """`hit` happens just before the first request of a phase."""
    original, hits = getattr(FleetClient, phase), []

    def struck(self: FleetClient, *args: Any, **kwargs: Any) -> Any:
        if not hits:
            hits.append(hit())
        return original(self, *args, **kwargs)

    monkeypatch.setattr(FleetClient, phase, struck)


def lose_and_rejoin(fleet: EngineFleet, monkeypatch: pytest.MonkeyPatch, backend: str, number: int, phase: str,
                    lost: int, worker: int | None = None) -> None:
    """worker: the victim is this worker of the engine, not its server."""
    wait_until(lambda: len(read_fleet(fleet.run_dir).engines) == 2, BACK_S, "both engines to be up")
    model = randomised(fleet.model_dir, seed=20)
    push = push_of(fleet, ModelSource(model), backend)
    if phase != "init":
        push.push("before")
    before = read_fleet(fleet.run_dir)
    pid = pid_of(fleet, lost) if worker is None else worker_of(fleet, lost, worker)
    other = before.engines[1 - lost].key
    hit_once(monkeypatch, phase, lambda: os.kill(pid, number))

    model = push.learner.model = randomised(fleet.model_dir, seed=21)
    pushed = push.push("during")
    assert pushed["push_engines"] == 1
    # A server whose worker has died answers errors until it ends, which may take more than one attempt.
    assert pushed["push_tries"] == 2 or (worker is not None and pushed["push_tries"] == 3)
    assert read_pushed(fleet.run_dir).keys == {other}
    assert read_fleet(fleet.run_dir).epoch > before.epoch
    assert fleet.get(1 - lost, "/weight_info").json() == {"weight_version": "during"}

    both_up(fleet)
    back = read_fleet(fleet.run_dir).engines[lost]
    assert back.incarnation == before.engines[lost].incarnation + 1
    assert back.key not in read_pushed(fleet.run_dir).keys, "stale until the next push"
    model = push.learner.model = randomised(fleet.model_dir, seed=22)
    pushed = push.push("after")
    assert (pushed["push_engines"], pushed["push_tries"]) == (2, 1)
    assert worst_difference(fleet, model) < TOLERANCE
    assert read_pushed(fleet.run_dir).keys == {other, back.key}
    push.close()
    told = [event["message"] for event in jsonl.read(fleet.run_dir.events) if event.get("after") == "dead"]
    assert told[-1].startswith(f"engine-{lost} "), told


@pytest.mark.engine
def test_engine_stopped_in_mid_push(watched: EngineFleet, monkeypatch: pytest.MonkeyPatch) -> None:
    """SIGSTOP between the buckets and the end of the update: the other engine has the new weights by then."""
    lose_and_rejoin(watched, monkeypatch, "shm", signal.SIGSTOP, "finish", lost=1)


@pytest.mark.engine
@pytest.mark.soak
@pytest.mark.parametrize("phase", PHASES)
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
@pytest.mark.parametrize("backend", ["shm", "gloo"])
def test_engine_lost_in_every_phase(watched: EngineFleet, monkeypatch: pytest.MonkeyPatch, backend: str, number: int,
                                    phase: str) -> None:
    monkeypatch.setattr(senders, "BUCKET_BYTES", 64 * 1024)  # several buckets even of a tiny model
    lose_and_rejoin(watched, monkeypatch, backend, number, phase, lost=PHASES.index(phase) % 2)


@pytest.fixture(scope="module")
def watched_pairs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EngineFleet]:
    """Two engines of two workers each."""
    place = tmp_path_factory.mktemp("pairs")
    engines = {"kv_cache_gib": 0.125, "max_num_seqs": 64, "restart_backoff_s": 0.1, "max_restarts": 20, "tp": 2}
    with watched_fleet(fleet_config(write_tiny_model(place / "model"), place / "runs", engines=engines)) as fleet:
        yield fleet


@pytest.mark.engine
@pytest.mark.soak
@pytest.mark.parametrize("phase", ["update", "finish"])
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
@pytest.mark.parametrize("backend", ["shm", "gloo"])
def test_one_worker_of_an_engine_lost(watched_pairs: EngineFleet, monkeypatch: pytest.MonkeyPatch, backend: str,
                                      number: int, phase: str) -> None:
    """With its other worker unharmed the engine is lost all the same."""
    monkeypatch.setattr(senders, "BUCKET_BYTES", 64 * 1024)
    lose_and_rejoin(watched_pairs, monkeypatch, backend, number, phase, lost=1, worker=1)


@pytest.mark.engine
@pytest.mark.soak
def test_an_engine_of_several_workers_outlives_a_broken_broadcast(tmp_path: Path, monkeypatch: pytest.MonkeyPatch
                                                                  ) -> None:
    """Its workers answer no error of their own (vLLM's executor would be out of step): it is not accused, makes a new
    group with the sender alone, and serves the weights exactly."""
    config = fleet_config(write_tiny_model(tmp_path / "model"), tmp_path / "runs")
    with running_fleet(config, tps=(2, 1), in_process=(1,)) as fleet:
        run_dir, epochs = fleet.run_dir, read_json(fleet.run_dir.fleet) or {}

        def kill_and_leave() -> None:
            fleet.processes[1].kill()  # the guard: with it the engine ends
            wait_until(lambda: fleet.processes[1].poll() is not None, 30, "the engine to end")
            write_json(run_dir.fleet, epochs | {"epoch": 2, "engines": epochs["engines"][:1]})

        push = push_of(fleet, ModelSource(randomised(fleet.model_dir, seed=24)), "gloo")
        assert push.push("before")["push_engines"] == 2
        hit_once(monkeypatch, "update", kill_and_leave)
        model = push.learner.model = randomised(fleet.model_dir, seed=25)
        pushed = push.push("during")
        assert (pushed["push_engines"], pushed["push_tries"]) == (1, 2)
        assert set(accusations(run_dir)) == {(1, 0)}
        assert worst_difference(replace(fleet, urls=fleet.urls[:1]), model) < TOLERANCE
        assert push.push("after")["push_tries"] == 1, "its workers' answers are still their own"
        push.close()


@pytest.mark.engine
@pytest.mark.soak
def test_last_try_names_the_engine(watched: EngineFleet, monkeypatch: pytest.MonkeyPatch) -> None:
    """Negative control of the tests above: without a repetition the loss is an error."""
    push = push_of(watched, ModelSource(randomised(watched.model_dir, seed=23)), "gloo", tries=1)
    pid = pid_of(watched, 0)
    hit_once(monkeypatch, "update", lambda: os.kill(pid, signal.SIGKILL))
    with pytest.raises(PushFailed, match=r"engine 0 at .* cannot be reached for /update_weights"):
        push.push("once")
    assert read_pushed(watched.run_dir).keys == frozenset()


def export_while_a_rank_ends(rank: Rank, given: LearnerSettings) -> None:
    """The last rank ends in the midst of the export as a process does that raised (`guarded_main`): by os._exit."""
    from siri_megatron.learner.control import ControlPlane
    from siri_megatron.learner.learner import Learner
    from siri_megatron.weights.export import export_tensors

    learner = Learner(given, ControlPlane.open(RunDir(rank.directory), rank.rank, rank.world, given.layout))
    for count, _ in enumerate(export_tensors(learner.chunks, learner.architecture, bucket_bytes=4096)):
        if count == 5 and rank.rank == rank.world - 1:
            os._exit(3)


@pytest.mark.parametrize("layout", ["tp", "pp"])
def test_nobody_waits_for_a_rank_that_ends_in_mid_export(tmp_path: Path, layout: str) -> None:
    """Rank 0, which was to send, leaves the collective as soon as the other one is gone, not at its time-out.

    That the rank is named, and everything ended, is the supervisor's part (tests/launch/test_supervisor.py).
    """
    given = settings(write_tiny_model(tmp_path / "model"), layout)
    with pytest.raises(RankFailed) as caught:
        run_ranks(export_while_a_rank_ends, 2, given)
    said = str(caught.value)
    assert "on rank 1: the process died" in said
    assert "Error" in said.partition("on rank 1")[0], said
    assert "no answer in time" not in said
