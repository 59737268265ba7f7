"""Sends requests to the fleet and brings back checked answers. The only HTTP client of the engines' sampling route.

What is tried again: a connection that breaks (an idle one dropped by the server, an engine that died) and a server
error, once, on another engine if there is one. What is not: HTTP 400, which says that the request is wrong and will
be wrong again (slime #2260), a refused key, a wrong answer, a time-out.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import aiohttp
import msgspec

from siri_megatron.errors import EngineError
from siri_megatron.rollout.engine_api import ROUTE, Sample, parse_answer, request_body
from siri_megatron.rollout.router import Router

CONNECT_S = 10.0
KEEP_ALIVE_S = 60.0  # below the engines' own (engine_args), so that this side drops idle connections first


class _Broken(Exception):
    """The request may succeed elsewhere; the text says what happened."""


@dataclass(frozen=True)
class Request:
    """`n` samples of one prompt. `group` keeps requests of a group on one engine."""

    group: int
    prompt_ids: Sequence[int]
    n: int
    max_tokens: int
    temperature: float
    seed: int | None
    stop_ids: Sequence[int]
    top_p: float = 1.0

    @property
    def tokens(self) -> int:
        """The most tokens it may produce."""
        return self.n * self.max_tokens

    def body(self) -> bytes:
        return msgspec.json.encode(request_body(
            self.prompt_ids, n=self.n, max_tokens=self.max_tokens, temperature=self.temperature, seed=self.seed,
            stop_ids=self.stop_ids, top_p=self.top_p))

    def parse(self, payload: object) -> list[Sample]:
        return parse_answer(payload, n=self.n, max_tokens=self.max_tokens, stop_ids=self.stop_ids)


@dataclass(frozen=True)
class Answer:
    samples: list[Sample]
    engine: int
    """Index of the engine that answered."""
    seconds: float
    """From sending the request to the parsed answer."""


class EngineClient:
    """The engines of one fleet membership. Made within a running event loop; `close` it.

    Args:
        urls: base URLs of the engines, by index.
        key: the run's key.
        connections: most connections at a time.
    """

    def __init__(self, urls: Sequence[str], key: str, *, connections: int) -> None:
        self.urls = tuple(urls)
        self._router = Router(len(self.urls))
        # trust_env stays False: proxies in the environment are not for engines.
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=connections, keepalive_timeout=KEEP_ALIVE_S),
            headers={"Authorization": f"Bearer {key}", "Content-Type": "application/json"},
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_S))  # the caller has the deadline

    async def close(self) -> None:
        await self._session.close()

    async def generate(self, request: Request, *, version: str) -> Answer:
        """Sample, under weights `version`. The caller sets the deadline (`asyncio.timeout`).

        Raises:
            EngineError: two attempts failed, or the answer is wrong or was sampled under other weights.
        """
        failed: int | None = None
        complaints: list[str] = []
        for _ in range(2):
            engine = self._router.assign(request.group, request.tokens, avoid=failed)
            try:
                return await self._ask(engine, request, version)
            except _Broken as broken:
                complaints.append(f"{self.urls[engine]}: {broken}")
                failed = engine
            finally:
                self._router.release(engine, request.tokens)
        raise EngineError(f"no engine could sample group {request.group}: {'; then '.join(complaints)}",
                          rule="a broken request is issued again once, on another engine if there is one",
                          fix="read the engines' logs")

    async def _ask(self, engine: int, request: Request, version: str) -> Answer:
        started = time.perf_counter()
        samples = request.parse(await self._post(engine, request.body()))
        check_versions(samples, version, self.urls[engine])
        return Answer(samples, engine, time.perf_counter() - started)

    async def _post(self, engine: int, body: bytes) -> Any:
        url = self.urls[engine] + ROUTE
        try:
            async with self._session.post(url, data=body) as response:
                content = await response.read()
        except (aiohttp.ClientConnectionError, aiohttp.ClientPayloadError) as error:
            raise _Broken(f"{type(error).__name__}: {error}") from None
        if response.status == 200:
            return _decoded(content, url)
        said = content[:500].decode(errors="replace")
        if response.status >= 500:
            raise _Broken(f"HTTP {response.status}: {said}")
        raise EngineError(f"{url} answered {response.status}: {said}",
                          rule="a refused request is not sent again: it would be refused again",
                          fix="look at prompt length + cap against the engines' context (engines.max_model_len), "
                              "and whether the engines belong to this run")


def check_versions(samples: Sequence[Sample], version: str, url: str) -> None:
    """Refuse samples of other weights than the ones asked for (lag 0: a whole response under one version).

    Raises:
        EngineError: names the engine and both versions.
    """
    found = {span["version"] for sample in samples for span in sample.spans}
    if found - {version}:
        raise EngineError(f"{url} sampled under weight version {', '.join(sorted(found))}, expected {version}",
                          rule="with lag 0 a step's rollouts come from the weights pushed for it",
                          fix="push the weights to every engine before collecting")


def _decoded(content: bytes, url: str) -> Any:
    try:
        return msgspec.json.decode(content)  # 23 ms where json takes 53: 17,000 tokens with log-probs are 2 MB of text
    except msgspec.DecodeError as error:
        raise EngineError(f"{url} answered no JSON: {error}: {content[:200]!r}", rule="answers are JSON",
                          fix="read the engine's log") from None


async def gather_or_cancel(coroutines: Sequence[Any]) -> list[Any]:
    """Results in order; at the first exception the others are cancelled, awaited, and it is raised."""
    tasks = [asyncio.ensure_future(coroutine) for coroutine in coroutines]
    try:
        return list(await asyncio.gather(*tasks))
    except BaseException:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        raise
