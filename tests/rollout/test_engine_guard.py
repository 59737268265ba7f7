"""Nothing of an engine answers without the run's key (vLLM's own --api-key leaves the control routes open)."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import httpx
import pytest
from engine_fleet import EngineFleet
from hypothesis import given
from hypothesis import strategies as st

from siri_megatron.errors import ConfigError
from siri_megatron.rollout.engine_guard import KEY_FILE_VARIABLE, RunKeyGuard, holds_key, read_key

KEY = "0123456789abcdef"
CREDENTIAL = f"Bearer {KEY}".encode()
Headers = list[tuple[bytes, bytes]]


@pytest.fixture
def guarded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """call(scope) -> (messages sent, whether the application was reached)."""
    (tmp_path / "key").write_text(KEY + "\n")
    monkeypatch.setenv(KEY_FILE_VARIABLE, str(tmp_path / "key"))
    reached: list[str] = []

    async def application(scope: Any, receive: Any, send: Any) -> None:
        reached.append(scope["type"])

    guard = RunKeyGuard(application)

    def call(kind: str, headers: Headers, **further: Any) -> tuple[list[Any], bool]:
        reached.clear()
        sent: list[Any] = []

        async def send(message: Any) -> None:
            sent.append(message)

        scope = {"type": kind, "path": "/x", "headers": headers, **further}
        asyncio.run(guard(scope, None, send))  # type: ignore[arg-type]
        return sent, bool(reached)
    return call


@pytest.mark.parametrize("headers", [
    [], [(b"authorization", b"")], [(b"authorization", KEY.encode())], [(b"authorization", b"Bearer wrong")],
    [(b"authorization", CREDENTIAL + b"0")], [(b"authorization", CREDENTIAL[:-1])], [(b"x-authorization", CREDENTIAL)],
    [(b"authorization", CREDENTIAL), (b"authorization", b"Bearer wrong")]])
def test_no_key_no_entry(guarded: Any, headers: Headers) -> None:
    sent, reached = guarded("http", headers)
    assert not reached
    assert (sent[0]["status"], len(sent)) == (401, 2)
    sent, reached = guarded("websocket", headers)
    assert not reached
    assert sent[0]["type"] == "websocket.close"


def test_a_websocket_is_refused_with_a_status_where_the_server_can(guarded: Any) -> None:
    """uvicorn can; without a status it would say 403."""
    sent, reached = guarded("websocket", [], extensions={"websocket.http.response": {}})
    assert not reached
    assert [message["type"] for message in sent] == ["websocket.http.response.start", "websocket.http.response.body"]
    assert sent[0]["status"] == 401


def test_the_key_opens_every_kind_of_door(guarded: Any) -> None:
    for kind in ("http", "websocket"):
        assert guarded(kind, [(b"Authorization", CREDENTIAL)]) == ([], True)


def test_lifespan_passes(guarded: Any) -> None:
    assert guarded("lifespan", []) == ([], True)


@given(st.binary(max_size=40))
def test_only_the_key_is_the_key(value: bytes) -> None:
    assert holds_key([(b"authorization", value)], CREDENTIAL) == (value == CREDENTIAL)


def test_no_engine_without_a_key(tmp_path: Path) -> None:
    (tmp_path / "empty").write_text("\n")
    for environment in ({}, {KEY_FILE_VARIABLE: str(tmp_path / "none")}, {KEY_FILE_VARIABLE: str(tmp_path / "empty")}):
        with pytest.raises(ConfigError, match="key"):
            read_key(environment)


@pytest.mark.engine
def test_every_route_of_a_real_engine_asks_for_the_key(engines: EngineFleet) -> None:
    """Over the whole openapi.json, both engines' control routes included; and over paths that no schema lists."""
    schema = engines.get(0, "/openapi.json").json()
    routes = [(method.upper(), path.replace("{response_id}", "x")) for path, methods in schema["paths"].items()
              for method in methods]
    assert {"/update_weights", "/pause", "/collective_rpc", "/inference/v1/generate"} <= {path for _, path in routes}
    unlisted = [("GET", path) for path in ("/metrics", "/docs", "/redoc", "/openapi.json", "/nothing", "//health")]
    with httpx.Client(trust_env=False, timeout=20, base_url=engines.urls[0]) as client:
        for method, path in [*routes, *unlisted, ("OPTIONS", "/health"), ("HEAD", "/docs")]:
            for headers in ({}, {"Authorization": "Bearer " + "0" * len(engines.key)}):
                answer = client.request(method, path, headers=headers)
                assert answer.status_code == 401, (method, path)


@pytest.mark.engine
def test_the_key_opens_a_real_engine(engines: EngineFleet) -> None:
    """Routes without side effects; the rest of the suite uses the others."""
    for engine in (0, 1):
        for path in ("/health", "/metrics", "/openapi.json", "/docs", "/v1/models", "/weight_info", "/is_paused"):
            assert engines.get(engine, path).status_code == 200, path
    assert engines.post(0, "/update_weights", {}).status_code == 400  # its own complaint, no longer the guard's
