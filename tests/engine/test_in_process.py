"""An engine in its server's process does what the stock one does. (Pushes, collection and evaluation are tested on a
fleet that has one of either kind: tests/conftest.py.)"""

from __future__ import annotations

import subprocess
import sys
import time
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import httpx
import pytest
from engine_fleet import EngineFleet, wait_until

from siri_megatron.data.digit_tokenizer import encode
from siri_megatron.rollout.engine_api import ROUTE, request_body

either = pytest.mark.parametrize("engine", [0, 1], ids=["stock", "in process"])
PROMPT = encode("^a1b2c3=")
SAMPLES, TOKENS = 16, 120
CROWD = 16
"""Requests: more than run at a time, so that a pause that comes late meets some of them."""
LONG = request_body(PROMPT, n=SAMPLES, max_tokens=TOKENS, temperature=1.0, seed=3, stop_ids=())
WHOLE = [("length", TOKENS)] * SAMPLES
TRIES = 8
"""Of a pause that comes when all requests have ended."""


@pytest.mark.engine
def test_both_kinds_sample_the_same(engines: EngineFleet) -> None:
    """The same seeds, alone and beside others: token for token, log-prob for log-prob."""
    post_all(engines, "/update_weight_version", {"new_version": "same"})
    one, other = (engines.sample(engine, PROMPT, n=8, max_tokens=60, seed=5) for engine in (0, 1))
    assert one == other
    with ThreadPoolExecutor(8) as pool:
        beside = [pool.submit(engines.sample, 1, PROMPT, n=8, max_tokens=60, seed=5 + 8 * at) for at in range(8)]
        assert beside[0].result() == one


def post_all(engines: EngineFleet, path: str, body: dict[str, Any]) -> None:
    assert [engines.post(engine, path, body).status_code for engine in (0, 1)] == [200, 200]


def asked_and_paused(engines: EngineFleet, engine: int, pool: ThreadPoolExecutor, mode: str,
                     requests: int = CROWD) -> tuple[list[Future[httpx.Response]], Future[httpx.Response]]:
    """Long requests, and a pause once as many samples run as one of them has."""
    answers = [pool.submit(engines.post, engine, ROUTE, LONG) for _ in range(requests)]
    wait_until(lambda: answers[0].done() or engines.metric(engine, "num_requests_running") >= SAMPLES, 30,
               "the requests to run", every_s=0.01)
    return answers, pool.submit(engines.post, engine, f"/pause?mode={mode}")


def lengths(answers: list[Future[httpx.Response]]) -> list[tuple[str, int]]:
    return [(choice["finish_reason"], len(choice["token_ids"])) for answer in answers
            for choice in answer.result().json()["choices"]]


def met_and_kept(engines: EngineFleet, engine: int) -> bool:
    """Whether a pause met the requests; then nothing is generated until the engine is resumed."""
    before = engines.generated(engine)
    with ThreadPoolExecutor(CROWD + 1) as pool:
        answers, paused = asked_and_paused(engines, engine, pool, "keep")
        try:
            assert paused.result().status_code == 200
            assert engines.get(engine, "/is_paused").json() == {"is_paused": True}
            so_far = engines.generated(engine) - before
            if met := so_far < CROWD * SAMPLES * TOKENS:
                time.sleep(0.5)
                assert engines.generated(engine) - before == so_far
                assert not all(answer.done() for answer in answers)
        finally:
            assert engines.post(engine, "/resume").status_code == 200
        assert lengths(answers) == WHOLE * CROWD
    return met


@pytest.mark.engine
@either
def test_keep_freezes_and_resume_goes_on(engines: EngineFleet, engine: int) -> None:
    assert any(met_and_kept(engines, engine) for _ in range(TRIES))


def aborted(engines: EngineFleet, engine: int) -> list[tuple[str, int]]:
    with ThreadPoolExecutor(CROWD + 1) as pool:
        answers, paused = asked_and_paused(engines, engine, pool, "abort")
        try:
            assert paused.result().status_code == 200
        finally:
            assert engines.post(engine, "/resume").status_code == 200
        return lengths(answers)  # those that came after the pause are whole


@pytest.mark.engine
@either
def test_abort_answers_with_what_there_is(engines: EngineFleet, engine: int) -> None:
    tries = (aborted(engines, engine) for _ in range(TRIES))
    found = next(found for found in tries if any(0 < length < TOKENS for _, length in found))
    assert all(reason == ("length" if length == TOKENS else "abort") for reason, length in found)
    assert len(engines.sample(engine, PROMPT, n=2)) == 2


@pytest.mark.engine
@either
def test_wait_lets_what_runs_end(engines: EngineFleet, engine: int) -> None:
    with ThreadPoolExecutor(3) as pool:
        answers, paused = asked_and_paused(engines, engine, pool, "wait", requests=1)
        try:
            assert lengths(answers) == WHOLE
            assert paused.result().status_code == 200
            late = pool.submit(engines.sample, engine, PROMPT)
            with pytest.raises(TimeoutError):
                late.result(timeout=1.0)
        finally:
            assert engines.post(engine, "/resume").status_code == 200
        assert late.result()


DEAD = """
import asyncio
from types import SimpleNamespace as Box
from vllm.sampling_params import SamplingParams
from vllm.v1.engine.exceptions import EngineDeadError
from siri_megatron.engine.in_process import InProcessEngine

class Engine:
    vllm_config = model_config = renderer = input_processor = None
    engine_core = Box(engine_core=Box(scheduler=Box(has_requests=lambda: True)))
    states = {}
    def step(self): raise RuntimeError("no memory")
    def add_request(self, name, prompt, sampling):
        self.states["one"] = Box(queue=None)
    @property
    def output_processor(self):
        def tell(error):
            for state in self.states.values(): state.queue.put(error)
        return Box(external_req_ids={"r": ["one"]}, request_states=self.states, propagate_error=tell)

async def main():
    engine = InProcessEngine(Engine())
    async def ask():
        async for _ in engine.generate({}, SamplingParams(), "r"): pass
    for _ in range(2):
        try:
            await asyncio.wait_for(ask(), 20)
        except EngineDeadError: print("dead")
    try: await engine.check_health()
    except EngineDeadError: print("unhealthy")
    print(engine.errored, engine.is_running)
asyncio.run(main())
"""


def test_dead_is_dead() -> None:
    """A step that raises fails the request that waits and all later ones, and vLLM's watchdog will end the server."""
    done = subprocess.run([sys.executable, "-c", DEAD], capture_output=True, text=True, timeout=240)
    assert done.stdout.split()[-5:] == ["dead", "dead", "unhealthy", "True", "False"], done.stdout + done.stderr[-3000:]
