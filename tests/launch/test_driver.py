"""The driver against a collector client that records what it is asked for."""

from __future__ import annotations

import http.server
import json
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar

import pytest
import yaml

from siri_megatron.budget.step_budget import StepBudget
from siri_megatron.errors import EngineError, RunFailed, StaleFleet
from siri_megatron.files import write_json
from siri_megatron.launch import driver
from siri_megatron.launch.stop import request_stop
from siri_megatron.ledger.schema import Rollout
from siri_megatron.ledger.write import StepWriter
from siri_megatron.observe import jsonl
from siri_megatron.paths import RunDir
from siri_megatron.rollout.fleet import Pushed, accusations, read_pushed

STATS = {"samples": 8, "tokens": 80, "accuracy": 0.5, "truncated": 0.0, "mean_tokens": 10.0, "all_wrong_groups": 0.0,
         "all_right_groups": 0.0, "failed_verifications": 0, "generation_s": 0.1, "engines": {"0": 8}}
KEY = "secret"


class Client:
    """Stands in for CollectorClient; `stop_at` asks for a stop while that step is collected."""

    asked: ClassVar[list[tuple[Any, ...]]] = []
    stop_at = -1

    def __init__(self, paths: RunDir) -> None:
        self.paths = paths

    def collect(self, budget: StepBudget, version: str, *, timeout_s: float,
                on_progress: Callable[[dict[str, int]], None], caps: dict[str, int]) -> dict[str, Any]:
        self.asked.append(("collect", budget.step, budget.cap, version))
        if budget.step == self.stop_at:
            request_stop(self.paths, "SIGINT")
            while True:
                on_progress({})
        return dict(STATS)

    def evaluate(self, tag: str, version: str, *, timeout_s: float) -> dict[str, Any]:
        self.asked.append(("evaluate", tag, version))
        return {}


@pytest.fixture
def client(monkeypatch: pytest.MonkeyPatch) -> type[Client]:
    monkeypatch.setattr(Client, "asked", [])
    monkeypatch.setattr(driver, "CollectorClient", Client)
    return Client


@pytest.fixture
def engine() -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """An engine's /update_weight_version: (url, what was posted)."""
    posted: list[dict[str, Any]] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            allowed = self.headers.get("Authorization") == f"Bearer {KEY}"
            posted.append({"path": self.path, **body} if allowed else {"refused": True})
            self.send_response(500 if body["new_version"] == "broken" else 200 if allowed else 401)
            self.end_headers()

        def log_message(self, *_: Any) -> None: ...

    server = http.server.HTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}", posted
    server.shutdown()
    server.server_close()


@pytest.fixture
def paths(tmp_path: Path, engine: tuple[str, list[dict[str, Any]]]) -> RunDir:
    """A run directory as the supervisor leaves it once everything serves."""
    raw = {"name": "r", "model": {"path": "m"}, "optimizer": {"lr": 1e-4},
           "budget": {"l_min": 8, "l_max": 16, "cycle_steps": 4, "cycles": 1}}
    paths = RunDir(tmp_path)
    paths.config.write_text(yaml.safe_dump(raw))
    paths.key.write_text(KEY)
    write_json(paths.fleet, {"epoch": 1, "model": "policy", "engines": [{"index": 0, "url": engine[0]}]})
    write_json(paths.collector, {"url": "http://127.0.0.1:1"})
    return paths


def test_rollout_only_collects_every_step_under_the_starting_weights(
        paths: RunDir, client: type[Client], engine: tuple[str, list[dict[str, Any]]]) -> None:
    driver.drive(paths, "rollout-only", "start")
    assert [asked[1:] for asked in client.asked] == [(0, 12, "0"), (1, 8, "0"), (2, 12, "0"), (3, 16, "0")]
    assert engine[1] == [{"path": "/update_weight_version", "new_version": "0"}]
    assert [record["step"] for record in jsonl.read(paths.metrics)] == [0, 1, 2, 3]
    assert "ready" in [event["kind"] for event in jsonl.read(paths.events)]


def test_rollout_only_follows_a_closed_loop(paths: RunDir, client: type[Client],
                                            monkeypatch: pytest.MonkeyPatch) -> None:
    """Half right at any budget: after the first step the cap falls to 12, the only budget below the top."""
    raw = yaml.safe_load(paths.config.read_text())
    raw["budget"] |= {"schedule": "closed", "closed": {"window": 1, "slope": 2}}
    paths.config.write_text(yaml.safe_dump(raw | {"rollout": {"budget_grid": [12]}}))
    shares = {"accuracy_untruncated": 0.5, "budget_accuracy": {"12": 0.5}, "budget_truncated": {"12": 0.0},
              "budget_accuracy_untruncated": {"12": 0.5}}
    monkeypatch.setitem(STATS, "accuracy_untruncated", 0.5)
    for name, share in shares.items():
        monkeypatch.setitem(STATS, name, share)
    driver.drive(paths, "rollout-only", "start")
    assert [cap for _, _, cap, _ in client.asked] == [16, 14, 12, 14]
    said = [event["message"] for event in jsonl.read(paths.events) if event["kind"] == "controller"]
    assert said == ["from step 1: warm-up ends; compression to 12 (J 50.0% of 50.0%), next L_max 16",
                    "from step 3: compression ends at cap 12: answers that end are right at 50.0%, before it 50.0%; "
                    "expansion to 16"]


def test_rollout_only_follows_solve_rates(paths: RunDir, client: type[Client], monkeypatch: pytest.MonkeyPatch) -> None:
    """A prompt that is always solved has half of the step's cap from the second step on; at l_min the whole."""
    raw = yaml.safe_load(paths.config.read_text())
    raw["budget"] |= {"l_min": 4, "prompt_caps": {"rule": "da_dler"}}
    paths.config.write_text(yaml.safe_dump(raw))
    ordered: list[dict[str, int]] = []

    def collect(self: Client, budget: StepBudget, *_: Any, caps: dict[str, int], **__: Any) -> dict[str, Any]:
        ordered.append(caps)
        writer = StepWriter(paths.ledger, budget, "id")
        cap = caps.get("solved", budget.cap)
        writer.append([Rollout(
            step=budget.step, phase=budget.phase, cap=cap, cap_version=budget.version, group=0, sample=0,
            prompt_id="solved", tier="", answer="", prompt_ids=[1], response_ids=[2], logprobs=[0.0],
            finish_reason="stop", truncated=False, outcome="right", reward=1.0, budget_rewards=[1.0],
            spans=[{"version": "0", "start": 0, "end": 1}], engine=0, seconds=0.1)])
        writer.close()
        return dict(STATS)

    monkeypatch.setattr(client, "collect", collect)
    driver.drive(paths, "rollout-only", "start")
    assert ordered == [{}, {}, {"solved": 5}, {"solved": 8}]  # caps 10, 4, 10, 16


def test_eval_asks_once_under_the_tag(paths: RunDir, client: type[Client]) -> None:
    driver.drive(paths, "eval", "iter1-expanded")
    assert client.asked == [("evaluate", "iter1-expanded", "0")]


def test_stop_while_a_step_is_collected_ends_without_an_error(paths: RunDir, client: type[Client],
                                                              monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "stop_at", 2)
    driver.drive(paths, "rollout-only", "start")
    assert [record["step"] for record in jsonl.read(paths.metrics)] == [0, 1]


def test_engine_that_refuses_the_key_is_named(paths: RunDir, client: type[Client],
                                              engine: tuple[str, list[dict[str, Any]]]) -> None:
    paths.key.write_text("another")
    with pytest.raises(EngineError, match=f"{engine[0]}/update_weight_version answered 401"):
        driver.drive(paths, "eval", "start")


def test_engines_are_named_when_they_come_and_only_then(paths: RunDir,
                                                        engine: tuple[str, list[dict[str, Any]]]) -> None:
    """One that cannot be reached is left out, and accused; a restarted one is another engine."""
    def fleet(incarnation: int) -> None:
        write_json(paths.fleet, {"epoch": 1, "model": "policy", "engines": [
            {"index": 0, "url": engine[0], "incarnation": incarnation}, {"index": 1, "url": "http://127.0.0.1:1"}]})

    fleet(0)
    for _ in range(2):
        driver.name_weights(paths)
        assert read_pushed(paths) == Pushed("0", frozenset({(0, 0)}))
    assert len(engine[1]) == 1
    assert accusations(paths) == {(1, 0): "did not take the version of its weights"}
    fleet(1)
    driver.name_weights(paths)
    assert read_pushed(paths) == Pushed("0", frozenset({(0, 1)}))
    assert len(engine[1]) == 2


def test_engine_whose_core_has_died_is_accused(paths: RunDir, engine: tuple[str, list[dict[str, Any]]],
                                               monkeypatch: pytest.MonkeyPatch) -> None:
    """It answers 500, which is no refusal: another one, or its restart, may do."""
    monkeypatch.setattr(driver, "VERSION", "broken")
    driver.name_weights(paths)
    assert read_pushed(paths) == Pushed("broken", frozenset())
    assert set(accusations(paths)) == {(0, 0)}


def test_asks_again_when_all_engines_that_were_named_are_lost(paths: RunDir) -> None:
    answers: list[Any] = [StaleFleet("lost"), StaleFleet("lost"), {"samples": 1}]

    def ask() -> dict[str, Any]:
        answer = answers.pop(0)
        if isinstance(answer, StaleFleet):
            raise answer
        return dict(answer)

    assert driver.on_engines(paths, ask) == {"samples": 1}
    assert answers == []


def test_waiting_ends_and_says_for_what(tmp_path: Path) -> None:
    with pytest.raises(RunFailed, match=r"the engines did not publish .*fleet.json within 0 s"):
        driver.await_file(tmp_path / "fleet.json", "the engines", 0.2)
