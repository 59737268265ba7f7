"""Real engines of a run with a lag: who goes first, evaluations amid rollouts, caps that fall under groups."""

from __future__ import annotations

import asyncio
import select
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import pytest
import torch
from engine_fleet import ANSWER_TIMEOUT_S, EngineFleet, alone, fleet_config, running_fleet, write_tiny_model
from hf_reference import logprobs, randomised
from test_evaluation import evaluator_of
from transformers import AutoModelForCausalLM, PreTrainedModel

from siri_megatron.budget.step_budget import StepBudget
from siri_megatron.config import RunConfig, validate
from siri_megatron.data.codec import TextCodec
from siri_megatron.data.digit_tokenizer import encode
from siri_megatron.data.prompts import train_prompts
from siri_megatron.launch.driver import name_version
from siri_megatron.ledger.read import StepRows, open_step
from siri_megatron.reward.verifier import build_verifier
from siri_megatron.rollout.collector import Collector, Progress
from siri_megatron.rollout.engine_api import ROUTE, request_body
from siri_megatron.rollout.engine_client import EngineClient
from siri_megatron.rollout.fleet import Pushed, read_fleet, read_pushed
from siri_megatron.rollout.load_watch import parse_load
from siri_megatron.rollout.request import Request
from siri_megatron.rollout.vllm_surface import METRICS, PAUSE, RESUME
from siri_megatron.weights.push import WeightPush

pytestmark = pytest.mark.engine

GROUPS, SAMPLES, CAP, LONG = 6, 8, 120, 120
TRIES = 8
MOMENTS_S = (0.05, 0.1, 0.2, 0.4, 0.8, 1.6, 3.2)
"""After which, on an idle machine or a busy one, a step's samples have begun and not ended."""
TOLERANCE = 3e-5
"""Of log-probs whose tokens are prefilled anew, in batches of other shapes than they were sampled in."""


def config_of(fleet: EngineFleet, place: Path, policy: str = "beside", lowered_cap: str = "keep") -> RunConfig:
    """Of a run with a lag on these engines."""
    return validate(fleet.config.model_dump(mode="json") | {
        "runs_dir": str(place), "reproducible": False,
        "rollout": {"prompts_per_step": GROUPS, "samples_per_prompt": SAMPLES, "budget_grid": [16, 64], "lag": 1,
                    "lowered_cap": lowered_cap},
        "evaluation": {"problems": 24, "samples": 1, "budgets": [16, 48], "temperature": 0.0, "rollouts": policy},
    }, "test")


def collector_of(config: RunConfig) -> Collector:
    """No token ends a response: every one is as long as its cap."""
    codec = TextCodec.load(config.model.path)
    return Collector(config, config.run_dir / "ledger", train_prompts(config.data, codec), (),
                     build_verifier(config.reward, codec))


def client_of(fleet: EngineFleet, version: str) -> EngineClient:
    """Within an event loop."""
    client, present = EngineClient(fleet.key, connections=256), read_fleet(fleet.run_dir)
    client.follow(present, Pushed(version, frozenset(engine.key for engine in present.engines)))
    return client


def load(fleet: EngineFleet, engine: int) -> tuple[int, int]:
    """Samples that run, and that wait."""
    found, missing = parse_load(fleet.get(engine, METRICS).text)
    assert not missing
    return found.running, found.waiting


# --- who goes first


def last_answered(fleet: EngineFleet, engine: int, *, early: int, late: int) -> str:
    """Of two requests of an engine's whole size and, after them, another, each with its priority: all are there before
    the first may run, and as long. (The last two answers may be read at one moment, where a machine stood still: then
    it is tried again.)"""

    def asked(priority: int) -> HTTPConnection:
        sent = fleet.send(engine, ROUTE, request_body(
            encode("^a1b2c3="), n=fleet.config.engines.max_num_seqs, max_tokens=LONG, temperature=1.0, seed=None,
            stop_ids=(), priority=priority))
        fleet.has_taken_in(engine)
        return sent

    for _ in range(TRIES):
        assert fleet.post(engine, f"{PAUSE}?mode=keep&clear_cache=false").status_code == 200
        sent = {name: asked(early if name != "late" else late) for name in ("early 0", "early 1", "late")}
        assert fleet.post(engine, RESUME).status_code == 200
        left = {connection.sock: name for name, connection in sent.items()}
        while len(left) > 1:
            answered, _, _ = select.select(list(left), [], [], ANSWER_TIMEOUT_S)
            assert answered, f"nothing answered of {list(left.values())}"
            for each in answered:
                left.pop(each)
        for connection in sent.values():
            assert connection.getresponse().status == 200
            connection.close()
        if left:
            return left.popitem()[1]
    raise AssertionError(f"{TRIES} times two answers were read at one moment")


@pytest.mark.parametrize("engine", [0, 1], ids=["stock", "in process"])
def test_a_late_request_of_an_earlier_step_goes_first(engines: EngineFleet, engine: int) -> None:
    """What step 4 has sent waits for what step 3 sends later. Negative control: among equals the late one is last."""
    assert last_answered(engines, engine, early=5, late=4) != "late"
    assert last_answered(engines, engine, early=5, late=5) == "late"


# --- evaluations amid rollouts


@dataclass
class Watched:
    """What is asked of a client's engines."""

    client: EngineClient
    asked: list[Request] = field(default_factory=list)
    there: Counter[str] = field(default_factory=Counter)
    together: bool = False
    """A rollout and an evaluation had requests on the engines at a time."""

    def __post_init__(self) -> None:
        generate: Callable[..., Any] = self.client.generate

        async def watched(request: Request, **given: Any) -> Any:
            kind = request.job.partition(" ")[0]
            self.asked.append(request)
            self.there[kind] += 1
            self.together |= min(self.there["step"], self.there["evaluation"]) > 0
            try:
                return await generate(request, **given)
            finally:
                self.there[kind] -= 1

        self.client.generate = watched  # type: ignore[method-assign]


def evaluated(config: RunConfig, fleet: EngineFleet, version: int,
              rollouts: bool = True, after_s: float = 0.0) -> tuple[dict[str, Any], Watched]:
    """The report of an evaluation, that begins `after_s` after a step's requests went out."""
    stamp = StepBudget(step=version, cycle=0, phase="compression", cap=CAP, version=1)

    async def work() -> tuple[dict[str, Any], Watched]:
        watched = Watched(client_of(fleet, str(version)))
        collector, evaluator = collector_of(config), evaluator_of(config)
        try:
            collecting = asyncio.ensure_future(collector.collect(stamp, str(version), watched.client, Progress())
                                               if rollouts else asyncio.sleep(0))
            while not (collecting.done() or watched.there["step"]):
                await asyncio.sleep(0.001)
            await asyncio.sleep(after_s)
            async with collector.right_of_way.evaluating("evaluation"):
                report = await evaluator.evaluate("tag", str(version), watched.client, Progress())
            await collecting
        finally:
            await watched.client.close()
        return {key: value for key, value in report.items() if key != "seconds"}, watched

    return asyncio.run(work())


def check_rows(rows: StepRows, models: dict[str, PreTrainedModel]) -> None:
    """Every sample is there, as long as its cap, and has the log-probs of the weights that its spans name."""
    assert len({(int(group), int(at)) for group, at in zip(rows.group, rows.sample, strict=True)}) == len(rows)
    assert len(rows) == GROUPS * SAMPLES
    for row in (rows.rollout(at) for at in range(len(rows))):
        assert len(row.response_ids) == row.cap
        for span in row.spans:
            part = slice(span["start"], span["end"])
            reference = logprobs(models[span["version"]], row.prompt_ids, row.response_ids)[part]
            assert (torch.tensor(row.logprobs[part]) - reference).abs().max().item() < TOLERANCE, span


def test_an_evaluation_amid_rollouts_says_what_one_alone_says(engines: EngineFleet, tmp_path: Path) -> None:
    for url in engines.urls:
        name_version(url, engines.key, "1")
    models = {"1": AutoModelForCausalLM.from_pretrained(engines.model_dir, dtype=torch.float32)}
    alone, _ = evaluated(config_of(engines, tmp_path / "alone"), engines, 1, rollouts=False)

    def rests(policy: str, after_s: float) -> list[Request]:
        """What was asked for of samples that an evaluation had interrupted."""
        config = config_of(engines, tmp_path / f"{policy} {after_s}", policy)
        report, watched = evaluated(config, engines, 1, after_s=after_s)
        assert report == alone, policy
        assert not watched.together, policy
        check_rows(open_step(config.run_dir / "ledger", 1), models)
        return [request for request in watched.asked if request.n == 1 and request.job == "step 1"]

    assert not rests("drained", 0.0)
    assert any(request.max_tokens < CAP for after_s in MOMENTS_S for request in rests("frozen", after_s)), \
        "some had tokens already"
    _, watched = evaluated(config_of(engines, tmp_path / "beside"), engines, 1)
    assert watched.together, "negative control: without the policy both are there at a time"


# --- whole steps with pushes in between


@pytest.fixture(scope="module")
def ahead(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EngineFleet]:
    """One engine of either kind, as a run with a lag starts them; a step waits within them in part."""
    place = tmp_path_factory.mktemp("ahead")
    config = fleet_config(write_tiny_model(place / "model"), place / "runs", reproducible=False,
                          engines={"kv_cache_gib": 0.125, "max_num_seqs": 16}, rollout={"lag": 1})
    with running_fleet(config, in_process=(1,)) as fleet:
        yield fleet


class Weights:
    """A learner that has the weights of a seed."""

    is_rank0 = True

    def __init__(self, fleet: EngineFleet, version: int) -> None:
        self.model = randomised(fleet.model_dir, version)

    def export_tensors(self) -> Iterator[tuple[str, torch.Tensor]]:
        yield from ((name, tensor.detach()) for name, tensor in self.model.named_parameters())


def push(fleet: EngineFleet, version: int) -> None:
    """The weights of the seed `version`, under that name."""
    pusher = WeightPush(fleet.with_push("shm"), fleet.run_dir, Weights(fleet, version), alone)
    pusher.push(str(version))
    pusher.close()


@pytest.mark.soak
def test_figures_are_those_of_the_weights(ahead: EngineFleet, tmp_path: Path) -> None:
    """Negative control of an evaluation amid rollouts: under other weights it says something else."""
    push(ahead, 1)
    first, _ = evaluated(config_of(ahead, tmp_path / "1"), ahead, 1, rollouts=False)
    push(ahead, 2)
    config = config_of(ahead, tmp_path / "2", "frozen")
    second, watched = evaluated(config, ahead, 2)
    assert not watched.together
    assert {**second, "weight_version": "1"} != first
    check_rows(open_step(config.run_dir / "ledger", 2), {"2": Weights(ahead, 2).model})


@pytest.mark.soak
@pytest.mark.parametrize("policy", ["cut", "drop"])
def test_steps_whose_caps_fall_under_groups_in_flight(ahead: EngineFleet, tmp_path: Path, policy: str) -> None:
    """Steps ordered ahead, pushes in between, as by rank 0: whole groups, exact log-probs, bounded staleness."""
    caps = (128, 96, 64, 32)
    config = config_of(ahead, tmp_path, lowered_cap=policy)
    collector = collector_of(config)
    stamps = [StepBudget(step=step, cycle=0, phase="compression", cap=cap, version=1 + step)
              for step, cap in enumerate(caps)]
    push(ahead, 0)

    async def work() -> list[dict[str, Any]]:
        client = client_of(ahead, "0")

        def admit(step: int) -> asyncio.Future[dict[str, Any]]:
            collecting = asyncio.ensure_future(collector.collect(stamps[step], str(step), client, Progress()))
            collector.admitted(stamps[step])
            return collecting

        steps, stats = [admit(0)], []
        try:
            for step in range(len(caps)):
                while not (steps[step].done() or any(load(ahead, engine)[0] for engine in (0, 1))):
                    await asyncio.sleep(0.01)
                if step + 1 < len(caps):
                    steps.append(admit(step + 1))
                stats.append(await steps[step])
                if step + 1 < len(caps):
                    await asyncio.to_thread(push, ahead, step + 1)
                    client.follow(read_fleet(ahead.run_dir), read_pushed(ahead.run_dir))
        finally:
            await client.close()
        return stats

    stats = asyncio.run(work())
    assert sum(one["lowered_groups"] for one in stats) > 0
    assert stats[-1]["lowered_groups"] == 0
    models = {str(step): Weights(ahead, step).model for step in range(len(caps))}
    for step in range(len(caps)):
        rows = open_step(config.run_dir / "ledger", step)
        check_rows(rows, models)
        assert set(rows.cap.tolist()) <= set(caps[step:step + 2])
        assert all(len(set(rows.cap[rows.group == group].tolist())) == 1 for group in range(GROUPS))
        assert {step - int(version) for version in rows.spans[1]} <= {0, 1}
