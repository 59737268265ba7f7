"""Packed answers of real engines, of either kind, are vLLM's own ones in another form."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import httpx
import msgspec
import pytest
from engine_fleet import EngineFleet, wait_until

from siri_megatron.data.digit_tokenizer import EOS_ID, encode
from siri_megatron.rollout.engine_api import COMPACT, ROUTE, parse_answer, request_body
from siri_megatron.rollout.vllm_surface import PAUSE, RESUME

pytestmark = [pytest.mark.engine, pytest.mark.parametrize("engine", [0, 1], ids=["stock", "in process"])]

PROMPT = encode("^a1b2c3=")
GONE, GONE_SAMPLES, GONE_TOKENS = 8, 64, 120
"""Requests, samples of each, as many as run at a time, and their tokens: seconds, and a pause comes amid them."""
TRIES = 8
"""Of a pause that comes when all requests have ended."""


def body(**given: Any) -> dict[str, Any]:
    return request_body(PROMPT, **({"n": 3, "max_tokens": 20, "temperature": 0.9, "seed": 11, "stop_ids": (EOS_ID,)}
                                   | given))


@pytest.fixture
def http(engines: EngineFleet, engine: int) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=engines.urls[engine], headers=engines.headers, timeout=60, trust_env=False) as client:
        yield client


def ask(http: httpx.Client, asked: dict[str, Any], accept: str = COMPACT) -> httpx.Response:
    return http.post(ROUTE, json=asked, headers={"Accept": accept})


def test_same_sample(http: httpx.Client) -> None:
    packed, plain = ask(http, body()), ask(http, body(), "application/json")
    assert (packed.headers["content-type"], plain.headers["content-type"]) == (COMPACT, "application/json")
    one, other = (parse_answer(payload, n=3, max_tokens=20, stop_ids=(EOS_ID,))
                  for payload in (msgspec.msgpack.decode(packed.content), plain.json()))
    assert one == other
    assert len({tuple(sample.token_ids) for sample in one}) == 3, "three streams, or the comparison says little"


def test_only_if_asked(http: httpx.Client) -> None:
    assert "choices" in ask(http, body(), "*/*").json()
    assert ask(http, body(), "text/plain").headers["content-type"] == "application/json"
    assert http.get("/version", headers={"Accept": COMPACT}).headers["content-type"] == "application/json"


def test_the_key_is_asked_for_first(engines: EngineFleet, engine: int) -> None:
    answer = httpx.post(engines.urls[engine] + ROUTE, json=body(), headers={"Accept": COMPACT}, trust_env=False)
    assert answer.status_code == 401


@pytest.mark.parametrize("wrong", [{"token_ids": [1] * 4000}, {"token_ids": None}, {"sampling_params": {"n": 0}},
                                   {"token_ids": []}])
def test_refused_alike(http: httpx.Client, wrong: dict[str, Any]) -> None:
    packed, plain = ask(http, body() | wrong), ask(http, body() | wrong, "application/json")
    assert packed.status_code == 400
    assert 400 <= plain.status_code < 500
    assert msgspec.msgpack.decode(packed.content)["error"]


def test_an_unknown_parameter_is_refused(http: httpx.Client) -> None:
    """vLLM's own route reads past it; here nobody believes that a misspelt one was heeded."""
    asked = body()
    asked["sampling_params"]["top_q"] = 0.5
    packed = ask(http, asked)
    assert packed.status_code == 400
    assert "top_q" in msgspec.msgpack.decode(packed.content)["error"]
    assert ask(http, asked, "application/json").status_code == 200


def test_more_samples_than_places_take_turns(http: httpx.Client, engines: EngineFleet) -> None:
    n = engines.config.engines.max_num_seqs + 1
    asked = body(n=n, max_tokens=4)
    packed = ask(http, asked)
    assert len(parse_answer(msgspec.msgpack.decode(packed.content), n=n, max_tokens=4, stop_ids=(EOS_ID,))) == n
    assert ask(http, asked, "application/json").status_code == 400


def tokens_of_the_gone(engines: EngineFleet, engine: int, *, hang_up: bool) -> int | None:
    """What an engine makes for clients after they hung up. It is paused meanwhile, so nothing ends by itself.

    None: it had made everything before the pause.
    """
    before = engines.generated(engine)
    asked = body(n=GONE_SAMPLES, max_tokens=GONE_TOKENS, stop_ids=())
    connections = [engines.send(engine, ROUTE, asked) for _ in range(GONE)]
    wait_until(lambda: engines.generated(engine) > before, 60, "the first tokens", every_s=0.0)
    assert engines.post(engine, f"{PAUSE}?mode=keep&clear_cache=false").status_code == 200
    try:
        engines.has_taken_in(engine)
        so_far = engines.generated(engine) - before
        for connection in connections if hang_up else ():
            connection.close()
        engines.has_taken_in(engine)
    finally:
        assert engines.post(engine, RESUME).status_code == 200
    engines.sample(engine, PROMPT, n=1, max_tokens=1)  # the engine then knows how many run
    wait_until(lambda: engines.metric(engine, "num_requests_running") == 0, 60, "the engine to end what it has")
    for connection in connections:
        connection.close()
    return None if so_far == GONE * GONE_SAMPLES * GONE_TOKENS else int(engines.generated(engine) - before - so_far) - 1


def test_gone_is_aborted(engines: EngineFleet, engine: int) -> None:
    """Clients that hang up leave no request behind. Negative control: those that stay get more tokens."""

    def tokens(hang_up: bool) -> int:
        tries = (tokens_of_the_gone(engines, engine, hang_up=hang_up) for _ in range(TRIES))
        return next(found for found in tries if found is not None)

    assert tokens(hang_up=True) == 0
    assert tokens(hang_up=False) > 0
