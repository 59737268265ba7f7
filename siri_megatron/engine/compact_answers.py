"""Answers of the sampling route as columns of numbers, for clients that ask for them.

vLLM's own answer to `POST /inference/v1/generate` has an object a token, built, checked and written as text one by one:
a good part of the time that a small model takes to sample one. This ASGI class, given by
`--middleware`, answers requests that say `Accept: application/msgpack` instead: the same request, passed to the same
engine client, and the same fields back, with ids and log-probs as packed arrays. All else goes on to vLLM.

    {"choices": [{"index": 0, "finish_reason": "stop", "token_ids": <int32...>, "logprob_ids": <int32...>,
                  "logprobs": <float32...>, "weight_versions": [{"version", "start", "end"}, ...]}, ...]}

Invariants:

- same_sample: ids, log-probs (to the bit, as float32), finish reasons and spans are those of vLLM's own answer.
- only_if_asked: without the header, and on every other route, vLLM answers.
- gone_is_aborted: when the client hangs up, the engine stops sampling for it.
- refused_alike: what vLLM refuses with 400 is refused with 400; a broken engine answers 500. Two things are otherwise:
    a sampling parameter that vLLM does not know is refused, where its own route reads past it; and more samples than
    the engine runs at a time take turns.
"""

from __future__ import annotations

import asyncio
import uuid
from array import array
from typing import Any

import msgspec
from vllm import SamplingParams
from vllm.exceptions import VLLMClientError
from vllm.inputs.engine import tokens_input
from vllm.sampling_params import RequestOutputKind
from vllm.v1.engine.exceptions import EngineDeadError, EngineGenerateError

from siri_megatron.rollout.engine_api import COMPACT, REQUEST_ID, ROUTE, engine_id
from siri_megatron.rollout.engine_guard import App, Receive, Scope, Send


class Asked(msgspec.Struct):
    """What counts of a request's body."""

    token_ids: list[int]
    sampling_params: dict[str, Any]
    priority: int = 0


class CompactAnswers:
    """ASGI middleware; wants to stand behind the guard."""

    def __init__(self, app: App) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if not asked(scope):
            await self.app(scope, receive, send)
            return
        body = await read_body(receive)
        answering = asyncio.ensure_future(answer(scope["app"].state.engine_client, body, request_id(scope)))
        gone = asyncio.ensure_future(disconnected(receive))
        try:
            await asyncio.wait({answering, gone}, return_when=asyncio.FIRST_COMPLETED)
            if answering.done():
                await respond(send, *answering.result())
        finally:
            gone.cancel()
            answering.cancel()


def asked(scope: Scope) -> bool:
    return (scope["type"] == "http" and scope.get("path") == ROUTE and scope.get("method") == "POST"
            and (b"accept", COMPACT.encode()) in scope.get("headers", ()))


def request_id(scope: Scope) -> str:
    """As vLLM names it, so that a request can be aborted by its X-Request-Id."""
    given = dict(scope["headers"]).get(REQUEST_ID.lower().encode())
    return engine_id(given.decode() if given else uuid.uuid4().hex)


async def read_body(receive: Receive) -> bytes:
    parts, more = [], True
    while more:
        message = await receive()
        parts.append(message.get("body", b""))
        more = message.get("more_body", False)
    return b"".join(parts)


async def disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def answer(engine: Any, body: bytes, name: str) -> tuple[int, bytes]:
    """Status and body."""
    try:
        asked = msgspec.json.decode(body, type=Asked)
        sampling = SamplingParams(**asked.sampling_params, output_kind=RequestOutputKind.FINAL_ONLY, flat_logprobs=True)
        final = None
        async for output in engine.generate(tokens_input(asked.token_ids), sampling, name,
                                            priority=asked.priority):
            final = output
    except (EngineDeadError, EngineGenerateError) as error:
        return 500, msgspec.msgpack.encode({"error": f"{type(error).__name__}: {error}"})
    except (VLLMClientError, ValueError, TypeError) as error:
        return 400, msgspec.msgpack.encode({"error": f"{type(error).__name__}: {error}"})
    assert final is not None
    return 200, msgspec.msgpack.encode({"choices": [columns(sample) for sample in final.outputs]})


def columns(sample: Any) -> dict[str, Any]:
    """A `CompletionOutput` in packed arrays."""
    return {"index": sample.index, "finish_reason": sample.finish_reason,
            "token_ids": array("i", sample.token_ids).tobytes(),
            "logprob_ids": array("i", sample.logprobs.token_ids).tobytes(),
            "logprobs": array("f", sample.logprobs.logprobs).tobytes(),
            "weight_versions": [{"version": span.version, "start": span.start, "end": span.end}
                                for span in sample.weight_versions or ()]}


async def respond(send: Send, status: int, body: bytes) -> None:
    headers = [(b"content-type", COMPACT.encode()), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
