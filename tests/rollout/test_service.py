"""The collector process and its client: real process, fake engines, the key on every route."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import httpx
import pytest
from engine_fleet import wait_until
from fake_engine import FakeEngine, run_config, run_directory, serving

from siri_megatron.budget.step_budget import StepBudget
from siri_megatron.config import RunConfig
from siri_megatron.data.codec import TextCodec
from siri_megatron.data.prompts import train_prompts
from siri_megatron.errors import DataError, EngineError, StaleFleet
from siri_megatron.files import read_json
from siri_megatron.ledger.read import closed_steps, open_step
from siri_megatron.ledger.recover import recover
from siri_megatron.paths import RunDir
from siri_megatron.rollout.client import CollectorClient
from siri_megatron.rollout.fleet import confirm

STAMP = StepBudget(step=0, cycle=0, phase="compression", cap=12, version=1)


@contextmanager
def engines_in_a_thread(*engines: FakeEngine) -> Iterator[tuple[str, ...]]:
    started: list[tuple[str, ...]] = []
    ready, stop = threading.Event(), threading.Event()

    async def serve() -> None:
        async with serving(*engines) as urls:
            started.append(urls)
            ready.set()
            await asyncio.to_thread(stop.wait)

    thread = threading.Thread(target=lambda: asyncio.run(serve()))
    thread.start()
    assert ready.wait(60)
    try:
        yield started[0]
    finally:
        stop.set()
        thread.join(20)


@contextmanager
def collector(config: RunConfig, *engines: FakeEngine) -> Iterator[RunDir]:
    """A run directory with a collector process; it ends by SIGTERM, and must then leave nobody behind."""
    with engines_in_a_thread(*engines) as urls:
        paths = run_directory(config, urls)
        with (paths.root / "log").open("wb") as log:
            process = subprocess.Popen([sys.executable, "-m", "siri_megatron.rollout.service", str(paths.root)],
                                       stdout=log, stderr=log, start_new_session=True)
        try:
            yield paths
            process.send_signal(signal.SIGTERM)
            assert process.wait(60) == 143
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait(60)
        wait_until(lambda: not group_lives(process.pid), 10, "the collector's workers to end")


def group_lives(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


def test_collect_evaluate_and_refusals(tmp_path: Path) -> None:
    engine, config = FakeEngine(delay_s=0.05), run_config(tmp_path)
    with collector(config, engine) as paths:
        client = CollectorClient(paths)
        heard: list[dict[str, int]] = []
        stats = client.collect(STAMP, "0", timeout_s=60, on_progress=heard.append)
        assert heard[-1] == {"groups": 4, "groups_done": 4, "tokens": stats["tokens"]}
        assert closed_steps(paths.ledger) == [0]
        assert len(open_step(paths.ledger, 0)) == 12
        assert client.collect(STAMP, "0", timeout_s=60) == stats  # idempotent
        assert len(engine.asked) == 4

        report = client.evaluate("start", "0", timeout_s=60)
        assert read_json(paths.evaluations / "start.json") == report
        with pytest.raises(StaleFleet, match="no engine has weight version 1, the newest is '0'"):
            client.evaluate("later", "1", timeout_s=60)
        engine.version = "1"
        confirm(paths, "1", [(0, 0)])
        assert client.evaluate("later", "1", timeout_s=60)["weight_version"] == "1"  # again after a failure
        for caps in ({"p": 12}, {"p": 0}, {"p": "5"}, {"p": 5.0}):
            with pytest.raises(DataError, match="caps has"):
                client.collect(replace(STAMP, step=1), "1", timeout_s=60, caps=caps)
        prompts = train_prompts(config.data, TextCodec.load(config.model.path))
        many = {f"some other prompt with a long name, number {number}": 5 for number in range(40000)}
        client.collect(replace(STAMP, step=1), "1", timeout_s=60, caps=many | {prompt.id: 5 for prompt in prompts})
        assert set(open_step(paths.ledger, 1).cap.tolist()) == {5}
        with pytest.raises(DataError, match="no file name"):
            client.evaluate("../../etc", "1", timeout_s=60)

        url = (read_json(paths.collector) or {})["url"]
        key = {"Authorization": "Bearer secret"}
        for method, route in (("GET", "/state"), ("GET", "/collect/0"), ("POST", "/collect"), ("POST", "/evaluate"),
                              ("GET", "/evaluate/start"), ("GET", "/"), ("GET", "/unknown"), ("DELETE", "/state")):
            assert httpx.request(method, url + route, trust_env=False).status_code == 401
        wrong = {"Authorization": "Bearer wrong"}
        assert httpx.get(url + "/state", headers=wrong, trust_env=False).status_code == 401
        jobs = httpx.get(url + "/state", headers=key, trust_env=False).json()["jobs"]
        assert jobs == {"collect/0": "done", "collect/1": "done", "evaluate/start": "done", "evaluate/later": "done"}
        bad = httpx.post(url + "/collect", content=b"{", headers=key, trust_env=False)
        assert (bad.status_code, "not JSON" in bad.json()["error"]["what"]) == (400, True)
        assert httpx.get(url + "/collect/9", headers=key, trust_env=False).status_code == 404
        assert httpx.get(url + "/collect/0?wait=x", headers=key, trust_env=False).status_code == 400
        client.close()


def test_collector_with_math_verifier_leaves_no_worker(tmp_path: Path) -> None:
    prompts = tmp_path / "p.jsonl"
    prompts.write_text('{"prompt": "a1b2|", "answer": "0"}\n{"prompt": "a2b2|", "answer": "1"}\n')
    config = run_config(tmp_path, reward={"verifier": "math", "timeout_s": 20.0},
                        data={"source": "dataset", "train": str(prompts)},
                        evaluation={"problems": 0, "at_start": False, "at_phase_ends": False})
    with collector(config, FakeEngine()) as paths:
        client = CollectorClient(paths)
        stats = client.collect(STAMP, "0", timeout_s=60)
        assert stats["failed_verifications"] == 0
        assert set(open_step(paths.ledger, 0).outcome) <= {"right", "wrong"}
        with pytest.raises(DataError, match="no held-out prompts"):
            client.evaluate("start", "0", timeout_s=60)
        client.close()


def test_collector_ends_in_the_middle_of_a_step(tmp_path: Path) -> None:
    """SIGTERM while engines sample and a client polls: nothing keeps it, and finished groups stay."""
    config = run_config(tmp_path)
    with collector(config, FakeEngine(delay_s=1.0), FakeEngine(delay_s=600)) as paths:  # all is dealt before one ends
        client = CollectorClient(paths)

        def give_up(progress: dict[str, int]) -> None:
            if progress["groups_done"] == 2:
                raise InterruptedError

        with pytest.raises(InterruptedError):
            client.collect(STAMP, "0", timeout_s=60, on_progress=give_up)
        client.close()
    assert recover(RunDir(config.run_dir).ledger) == ["kept 2 whole groups of step-000000.open, cut 0 torn bytes"]


def test_collector_that_cannot_start_leaves_its_last_words(tmp_path: Path) -> None:
    config = run_config(tmp_path, data={"source": "dataset", "train": str(tmp_path / "none.jsonl")})
    paths = run_directory(config, ("http://127.0.0.1:9",))
    process = subprocess.run([sys.executable, "-m", "siri_megatron.rollout.service", str(paths.root)],
                             capture_output=True, timeout=180, check=False)
    assert process.returncode == 2
    words = read_json(paths.failures / "collector.json") or {}
    assert "none.jsonl do not exist" in words["what"]


def test_client_without_a_collector(tmp_path: Path) -> None:
    paths = run_directory(run_config(tmp_path), ())
    paths.collector.write_text('{"url": "http://127.0.0.1:9"}')
    with pytest.raises(EngineError, match="does not answer POST /collect"):
        CollectorClient(paths).collect(STAMP, "0", timeout_s=5)
