"""An engine in its server's process does what the stock one does. (Pushes, collection and evaluation are tested on a
fleet that has one of either kind: tests/conftest.py.)"""

from __future__ import annotations

import subprocess
import sys
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import httpx
import pytest
from engine_fleet import EngineFleet, wait_until

from siri_megatron.data.digit_tokenizer import encode
from siri_megatron.rollout.engine_api import ROUTE, request_body

either = pytest.mark.parametrize("engine", [0, 1], ids=["stock", "in process"])
PROMPT = encode("^a1b2c3=")
LONG = request_body(PROMPT, n=64, max_tokens=120, temperature=1.0, seed=3, stop_ids=())


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


def running(engines: EngineFleet, engine: int) -> float:
    lines = engines.get(engine, "/metrics").text.splitlines()
    return sum(float(line.split()[-1]) for line in lines if line.startswith("vllm:num_requests_running"))


def asked_and_paused(engines: EngineFleet, engine: int, pool: ThreadPoolExecutor,
                     mode: str) -> tuple[Future[httpx.Response], Future[httpx.Response]]:
    """A long request, once it runs, and a pause."""
    answer = pool.submit(engines.post, engine, ROUTE, LONG)
    wait_until(lambda: running(engines, engine) > 0, 30, "the request to run", every_s=0.01)
    return answer, pool.submit(engines.post, engine, f"/pause?mode={mode}")


def lengths(answer: httpx.Response) -> list[tuple[str, int]]:
    return [(choice["finish_reason"], len(choice["token_ids"])) for choice in answer.json()["choices"]]


@pytest.mark.engine
@either
def test_keep_freezes_and_resume_goes_on(engines: EngineFleet, engine: int) -> None:
    with ThreadPoolExecutor(2) as pool:
        answer, paused = asked_and_paused(engines, engine, pool, "keep")
        try:
            assert paused.result().status_code == 200
            assert engines.get(engine, "/is_paused").json() == {"is_paused": True}
            with pytest.raises(TimeoutError):
                answer.result(timeout=1.5)
        finally:
            assert engines.post(engine, "/resume").status_code == 200
        assert lengths(answer.result()) == [("length", 120)] * 64


@pytest.mark.engine
@either
def test_abort_answers_with_what_there_is(engines: EngineFleet, engine: int) -> None:
    with ThreadPoolExecutor(2) as pool:
        answer, paused = asked_and_paused(engines, engine, pool, "abort")
        try:
            found = lengths(answer.result())
            assert paused.result().status_code == 200
        finally:
            assert engines.post(engine, "/resume").status_code == 200
    assert {reason for reason, _ in found} == {"abort"}
    assert all(0 < length < 120 for _, length in found)
    assert len(engines.sample(engine, PROMPT, n=2)) == 2


@pytest.mark.engine
@either
def test_wait_lets_what_runs_end(engines: EngineFleet, engine: int) -> None:
    with ThreadPoolExecutor(3) as pool:
        answer, paused = asked_and_paused(engines, engine, pool, "wait")
        try:
            assert lengths(answer.result()) == [("length", 120)] * 64
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
