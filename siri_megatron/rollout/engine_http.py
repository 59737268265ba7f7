"""The sampling route of an engine over HTTP: one attempt at a request, and how it is aborted.

Invariants:
    broken_or_final: what may succeed elsewhere (a connection that breaks, a server error) raises `Broken`; what would
        be refused again (HTTP 400, a wrong key, an answer that is none) raises EngineError.
    no_proxy: proxies in the environment are not for engines.
"""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Mapping, Sequence
from typing import Any

import aiohttp
import msgspec

from siri_megatron.errors import EngineError
from siri_megatron.rollout.engine_api import ABORT_ROUTE, COMPACT, REQUEST_ID, ROUTE, engine_id

CONNECT_S = 10.0
ABORT_AGAIN_S = 1.0
"""Between two tries to abort a request: it may not have reached the engine at the first one."""
KEEP_ALIVE_S = 60.0  # below the engines' own (engine_args), so that this side drops idle connections first


class Broken(Exception):
    """The request may succeed elsewhere; the text says what happened."""


def open_session(key: str, connections: int) -> aiohttp.ClientSession:
    """Connections that carry the run's key. Within a running event loop; the caller closes it."""
    # trust_env stays False.
    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=connections, keepalive_timeout=KEEP_ALIVE_S),
        headers={"Authorization": f"Bearer {key}", "Content-Type": "application/json", "Accept": COMPACT},
        timeout=aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_S))  # the caller has the deadline


class EngineHttp:
    """Requests to engines by their address."""

    def __init__(self, session: aiohttp.ClientSession) -> None:
        self._session = session

    async def ask(self, url: str, body: bytes, interrupts: Sequence[asyncio.Event] = ()) -> Any:
        """The decoded answer to a request; aborted, with what there is, once one of the interruptions comes.

        Raises:
            Broken: it may succeed elsewhere.
            EngineError: it would not.
        """
        return await (self._until(interrupts, url, body) if interrupts else self._post(url, body))

    async def _until(self, interrupts: Sequence[asyncio.Event], url: str, body: bytes) -> Any:
        request_id = uuid.uuid4().hex
        answer = asyncio.ensure_future(self._post(url, body, {REQUEST_ID: request_id}))
        told = [asyncio.ensure_future(interrupt.wait()) for interrupt in interrupts]
        try:
            await asyncio.wait({answer, *told}, return_when=asyncio.FIRST_COMPLETED)
            while not answer.done():
                await self._abort(url, request_id)
                await asyncio.wait({answer}, timeout=ABORT_AGAIN_S)
            return answer.result()
        finally:
            for one in (answer, *told):
                one.cancel()

    async def _abort(self, url: str, request_id: str) -> None:
        """Without effect if the engine does not have the request yet, or no more."""
        body = msgspec.json.encode({"request_ids": [engine_id(request_id)]})
        try:
            async with self._session.post(url + ABORT_ROUTE, data=body) as response:
                await response.read()
        except (aiohttp.ClientConnectionError, aiohttp.ClientPayloadError) as error:
            raise Broken(f"{type(error).__name__}: {error}") from None

    async def _post(self, url: str, body: bytes, headers: Mapping[str, str] | None = None) -> Any:
        try:
            async with self._session.post(url + ROUTE, data=body, headers=headers) as response:
                content = await response.read()
        except (aiohttp.ClientConnectionError, aiohttp.ClientPayloadError) as error:
            raise Broken(f"{type(error).__name__}: {error}") from None
        if response.status == 200:
            return _decoded(content, response.content_type, url + ROUTE)
        said = content[:500].decode(errors="replace")
        if response.status >= 500:
            raise Broken(f"HTTP {response.status}: {said}")
        raise EngineError(f"{url}{ROUTE} answered {response.status}: {said}",
                          rule="a refused request is not sent again: it would be refused again",
                          fix="look at prompt length + cap against the engines' context (engines.max_model_len), "
                              "and whether the engines belong to this run")


def _decoded(content: bytes, kind: str, url: str) -> Any:
    """An answer in the form that it says to have: servers without our middleware know JSON only."""
    try:
        return (msgspec.msgpack if kind == COMPACT else msgspec.json).decode(content)
    except msgspec.DecodeError as error:
        raise EngineError(f"{url} answered {kind} that is none: {error}: {content[:200]!r}",
                          rule=f"answers are {COMPACT} or JSON", fix="read the engine's log") from None
