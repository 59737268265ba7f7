"""The lock on every door of a vLLM server.

vLLM's own `--api-key` guards only routes under /v1, /v2, /inference and /cohere; the routes that change weights, pause
or run methods on the workers stay open. This ASGI class, given by `--middleware`, asks for the run's key on all of
them: control, health, metrics, documentation, websockets.

Invariants:

- no_key_no_entry: without `Authorization: Bearer <key>` an HTTP request is answered 401 and a websocket is refused,
  whatever the path or method; the application is never called.
- constant_time: the time of a refusal does not depend on how much of the key was right.
- lifespan_passes: start-up and shutdown events reach the application.
"""

from __future__ import annotations

import hmac
import os
from collections.abc import Awaitable, Callable, Iterable, Mapping, MutableMapping
from pathlib import Path
from typing import Any

from siri_megatron.errors import ConfigError

KEY_FILE_VARIABLE = "SIRI_RUN_KEY_FILE"
ANSWERED = "websocket.http.response"
"""The extension of ASGI by which a server lets a websocket be refused with a status."""
RULE = "an engine starts only with the run's key"

Scope = Mapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]


class RunKeyGuard:
    """ASGI middleware; the key is read once, from the file that the environment names."""

    def __init__(self, app: App) -> None:
        self.app = app
        self.credential = b"Bearer " + read_key(os.environ).encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan" or holds_key(scope.get("headers", ()), self.credential):
            await self.app(scope, receive, send)
        elif scope["type"] == "http":
            await refuse(send, "http.response")
        elif ANSWERED in (scope.get("extensions") or ()):
            await refuse(send, ANSWERED)
        else:
            await send({"type": "websocket.close", "code": 1008, "reason": "run key missing or wrong"})


def read_key(environment: Mapping[str, str]) -> str:
    """The run's key, from the file named by SIRI_RUN_KEY_FILE.

    Raises:
        ConfigError: the variable is not set or the file is missing or empty. An engine never starts unguarded.
    """
    name = environment.get(KEY_FILE_VARIABLE, "")
    if not name or not Path(name).is_file():
        raise ConfigError(f"{KEY_FILE_VARIABLE}={name!r} names no file", rule=RULE,
                          fix="start engines through the supervisor, which writes the key file")
    key = Path(name).read_text().strip()
    if not key:
        raise ConfigError(f"key file {name} is empty", rule=RULE,
                          fix="remove the file; the supervisor writes a new one")
    return key


def holds_key(headers: Iterable[tuple[bytes, bytes]], credential: bytes) -> bool:
    """True if exactly one Authorization header is there and equals the credential."""
    given = [value for name, value in headers if name.lower() == b"authorization"]
    return len(given) == 1 and hmac.compare_digest(given[0], credential)


async def refuse(send: Send, kind: str) -> None:
    body = b'{"error": "unauthorized: the run key is missing or wrong"}'
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode()),
               (b"www-authenticate", b"Bearer")]
    await send({"type": f"{kind}.start", "status": 401, "headers": headers})
    await send({"type": f"{kind}.body", "body": body})
