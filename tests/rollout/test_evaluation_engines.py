"""A suite evaluation on real engines: killed in its middle and gone on with, it says what an undisturbed one says."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from engine_fleet import EngineFleet, wait_until

from siri_megatron import config as configs
from siri_megatron.config import RunConfig
from siri_megatron.data.digit_sum import problems
from siri_megatron.data.digit_tokenizer import BOS_ID, EOS_ID, encode
from siri_megatron.files import read_json
from siri_megatron.launch.driver import name_version
from siri_megatron.paths import RunDir
from siri_megatron.rollout.client import CollectorClient
from siri_megatron.rollout.engine_api import ROUTE, parse_answer, request_body
from siri_megatron.rollout.eval_journal import whole_lines
from siri_megatron.rollout.fleet import confirm, read_fleet

pytestmark = pytest.mark.engine

PROBLEMS, QUESTIONS = 120, 60


def prepared(fleet: EngineFleet, place: Path) -> RunDir:
    """A run directory beside these engines, with a suite from a file."""
    rows = [vars(problem) for problem in problems("eval", QUESTIONS, seed=5)]
    place.mkdir()
    (place / "suite.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    suite = {"name": "sums", "data": str(place / "suite.jsonl"), "samples": 4, "budgets": [24, 64], "temperature": 0.8,
             "top_p": 0.9}
    raw = fleet.config.model_dump(mode="json") | {"runs_dir": str(place), "evaluation": {
        "problems": PROBLEMS, "samples": 2, "budgets": [32, 128], "suites": [suite]}}
    config: RunConfig = configs.validate(raw, "test")
    paths = RunDir(config.run_dir)
    paths.root.mkdir()
    configs.save(config, paths.config)
    paths.key.write_text(fleet.key)
    paths.fleet.write_text(fleet.run_dir.fleet.read_text())
    for url in fleet.urls:
        name_version(url, fleet.key, "3")
    confirm(paths, "3", [engine.key for engine in read_fleet(paths).engines])
    return paths


@contextmanager
def collector(paths: RunDir) -> Iterator[subprocess.Popen[bytes]]:
    paths.collector.unlink(missing_ok=True)
    with (paths.root / "collector.log").open("ab") as log:
        process = subprocess.Popen([sys.executable, "-m", "siri_megatron.rollout.service", str(paths.root)],
                                   stdout=log, stderr=log, start_new_session=True)
    try:
        wait_until(paths.collector.exists, 120, "the collector")
        yield process
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.wait(timeout=60)


def evaluated(paths: RunDir) -> dict[str, Any]:
    """The report as it stands in the run directory; the journal is gone by then."""
    with collector(paths):
        client = CollectorClient(paths)
        answer = client.evaluate("start", "3", timeout_s=240)
        client.close()
    report = read_json(paths.evaluations / "start.json")
    assert answer == report
    assert [path.name for path in paths.evaluations.iterdir()] == ["start.json"]
    return {key: value for key, value in answer.items() if key != "seconds"}


def kill_in_the_middle(paths: RunDir, journal: Path) -> int:
    """SIGKILL for the collector once some questions are done; returns how many."""
    with collector(paths) as process:
        address = json.loads(paths.collector.read_text())["url"]
        answer = httpx.post(f"{address}/evaluate", json={"tag": "start", "weight_version": "3"}, trust_env=False,
                            headers={"Authorization": f"Bearer {paths.key.read_text()}"})
        assert answer.status_code == 202
        wait_until(lambda: len(list(whole_lines(journal))) > 20, 120, "twenty questions", every_s=0.01)
        os.killpg(process.pid, signal.SIGKILL)
    return len(list(whole_lines(journal))) - 1


def test_killed_and_gone_on_with(engines: EngineFleet, tmp_path: Path) -> None:
    whole = evaluated(prepared(engines, tmp_path / "whole"))
    killed = prepared(engines, tmp_path / "killed")
    done = kill_in_the_middle(killed, killed.evaluations / "start.journal")
    assert 20 <= done < PROBLEMS + QUESTIONS
    assert not (killed.evaluations / "start.json").exists()
    assert evaluated(killed) == whole
    log = (killed.root / "collector.log").read_text()
    assert f"evaluation start goes on: {done} of {PROBLEMS + QUESTIONS} questions are done" in log
    sums = whole["suites"]["sums"]
    assert (sums["problems"], sums["samples"], sums["top_p"], whole["problems"]) == (QUESTIONS, 4, 0.9, PROBLEMS)
    low, high = sums["accuracy_ci"]
    assert 0 <= low <= sums["accuracy"] <= high <= 1
    assert 0 < sums["mean_tokens"] <= 64


def test_a_tiny_nucleus_is_greedy(engines: EngineFleet) -> None:
    """top_p reaches the sampler: the smallest nucleus holds one token. Negative control: the whole one does not."""
    prompt = [BOS_ID, *encode("a3b8c2|")]

    def sample(**settings: Any) -> list[list[int]]:
        body = request_body(prompt, n=4, max_tokens=16, seed=3, stop_ids=(EOS_ID,), **settings)
        answer = engines.post(0, ROUTE, body)
        assert answer.status_code == 200, answer.text
        return [sample.token_ids for sample in parse_answer(answer.json(), n=4, max_tokens=16, stop_ids=(EOS_ID,))]

    greedy = engines.sample(0, prompt, max_tokens=16, temperature=0.0, seed=None, stop_ids=(EOS_ID,))[0].token_ids
    assert sample(temperature=1.0, top_p=1e-6) == [greedy] * 4
    assert sample(temperature=1.0) != [greedy] * 4
