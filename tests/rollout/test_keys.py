"""No route of an engine or of the collector answers without the run's key, however it is asked for."""

from __future__ import annotations

import asyncio
import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from aiohttp import web
from engine_fleet import EngineFleet
from key_requests import SOCKET, odd_forms, status, wrong_headers

from siri_megatron.launch.spec import child_environment
from siri_megatron.paths import RunDir
from siri_megatron.rollout.app import CollectorService
from siri_megatron.rollout.engine_args import GUARD, engine_launch
from siri_megatron.rollout.vllm_surface import GENERATE, INSECURE, ROUTES, SERVER, UPDATE_WEIGHTS

KEY = "0123456789abcdef" * 4
METHODS = ("GET", "POST", "PUT", "DELETE", "PATCH", "HEAD", "OPTIONS", "TRACE")
Route = tuple[str, str, list[str]]
"""Kind, path, methods."""


def filled(path: str) -> str:
    """A path with something for its parameters."""
    return re.sub(r"\{[^}]*\}", "x", path) or "/"


# --- an engine


@pytest.fixture(scope="module")
def table(engines: EngineFleet) -> list[Route]:
    """The raw routes of the application that an engine runs: mounts, websockets and pages of documentation too."""
    launch = engine_launch(engines.config, 0, 1, key_file=engines.run_dir.key, cores=[0])
    arguments = list(launch.argv[launch.argv.index(SERVER) + 1:])
    wrapped = []
    while "--middleware" in arguments:
        at = arguments.index("--middleware")
        wrapped, arguments = [*wrapped, arguments[at + 1]], [*arguments[:at], *arguments[at + 2:]]
    assert wrapped[-1] == GUARD  # the last one is outermost
    script = Path(__file__).with_name("route_table.py")
    said = subprocess.run([sys.executable, str(script), *arguments], check=True, env=launch.environment(os.environ),
                          capture_output=True, text=True, timeout=300)
    return [tuple(json.loads(line)) for line in said.stdout.splitlines() if line.startswith("[")]


def schema_paths(engines: EngineFleet) -> set[str]:
    return set(engines.get(0, "/openapi.json").json()["paths"])


@pytest.mark.engine
def test_the_table_is_whole(engines: EngineFleet, table: list[Route]) -> None:
    """The application that is asked about is the engine's: nothing in its schema is missing, and more is there."""
    paths = {path for _, path, _ in table}
    assert schema_paths(engines) <= paths
    assert set(ROUTES) <= paths
    assert {"/metrics", "/docs", "/redoc", "/openapi.json", "/collective_rpc"} <= paths
    assert {"Mount", "APIRoute"} <= {kind for kind, _, _ in table}


@pytest.mark.engine
def test_no_route_of_an_engine_answers_without_the_key(engines: EngineFleet, table: list[Route]) -> None:
    """Every route with its methods: no key, a wrong one, and as a websocket."""
    wrong = wrong_headers(engines.key)["a wrong key"]
    for _, path, methods in table:
        for method in methods or ("GET", "POST"):
            for headers in ((), wrong):
                assert status(engines.urls[0], method, filled(path), headers) == 401, (method, path, headers)
        assert status(engines.urls[0], "GET", filled(path), (*SOCKET, *wrong)) == 401, path


@pytest.mark.engine
def test_no_odd_form_opens_an_engine(engines: EngineFleet) -> None:
    for path in (UPDATE_WEIGHTS, GENERATE, "/metrics", "/docs", "/collective_rpc"):
        for form in odd_forms(path, engines.key):
            assert status(engines.urls[0], "POST", form) == 401, form
        for name, headers in wrong_headers(engines.key).items():
            for method in METHODS if path == UPDATE_WEIGHTS else ("POST", "OPTIONS"):
                assert status(engines.urls[0], method, path, headers) == 401, (name, method, path)


@pytest.mark.engine
def test_the_key_opens_it(engines: EngineFleet) -> None:
    """Control: with the key the same bytes reach the application, which has its own answers."""
    right = (f"Authorization: Bearer {engines.key}",)
    assert status(engines.urls[0], "GET", "/health", right) == 200
    assert status(engines.urls[0], "POST", UPDATE_WEIGHTS, right) == 400
    assert status(engines.urls[0], "GET", "/nothing", right) == 404


# --- the collector


@pytest.fixture
def served(tmp_path: Path) -> Iterator[tuple[str, list[Route]]]:
    """A collector's address and routes."""
    paths = RunDir(tmp_path)
    application = CollectorService(paths, KEY, None, None, client={"connections": 2}).application()
    routes = [("route", route.resource.canonical, [route.method]) for route in application.router.routes()
              if route.resource is not None]
    told: list[str] = []
    ready, over = threading.Event(), threading.Event()

    async def serve() -> None:
        runner = web.AppRunner(application, access_log=None, shutdown_timeout=1.0)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        told.append(f"http://127.0.0.1:{runner.addresses[0][1]}")
        ready.set()
        await asyncio.to_thread(over.wait)
        await runner.cleanup()

    thread = threading.Thread(target=lambda: asyncio.run(serve()))
    thread.start()
    assert ready.wait(60)
    yield told[0], routes
    over.set()
    thread.join(20)


def test_no_route_of_the_collector_answers_without_the_key(served: tuple[str, list[Route]]) -> None:
    url, routes = served
    assert {path for _, path, _ in routes} >= {"/collect", "/collect/{name}", "/evaluate", "/state"}
    for path in [*(filled(path) for _, path, _ in routes), "/", "/nothing"]:
        for name, headers in wrong_headers(KEY).items():
            for method in METHODS:
                assert status(url, method, path, headers) == 401, (name, method, path)
        for form in odd_forms(path, KEY):
            assert status(url, "GET", form) == 401, form
        assert status(url, "GET", path, SOCKET) == 401
        assert status(url, "POST", path, ("Expect: 100-continue",)) in (100, 401)  # an interim answer says nothing


def test_the_key_opens_the_collector(served: tuple[str, list[Route]]) -> None:
    right = (f"Authorization: Bearer {KEY}",)
    assert status(served[0], "GET", "/state", right) == 200
    assert status(served[0], "GET", "/nothing", right) == 404
    assert status(served[0], "POST", "/collect", right) == 400


# --- nothing is unpickled


def test_no_engine_unpickles_what_it_is_sent(tmp_path: Path, engines_config: object) -> None:
    """vLLM reads pickles from its sockets only under this variable; a shell's is not handed on."""
    shell = dict.fromkeys(INSECURE, "1") | {"PATH": "/bin"}
    launch = engine_launch(engines_config, 0, 1, key_file=tmp_path / "key", cores=[0])  # type: ignore[arg-type]
    for environment in (launch.environment(shell), child_environment(shell, launch.env)):
        assert not set(INSECURE) & environment.keys()
        assert environment["PATH"] == "/bin"


@pytest.fixture
def engines_config(tmp_path: Path) -> object:
    from engine_fleet import fleet_config
    return fleet_config(tmp_path / "model", tmp_path / "runs")


def test_no_source_of_ours_unpickles() -> None:
    """What engines, collector, supervisor and learners tell each other over HTTP or gloo is JSON, or raw tensors."""
    package = Path(__file__).resolve().parents[2] / "siri_megatron"
    pickling = re.compile(r"^\s*(import|from) (cloud)?(pickle|dill|marshal)\b|_object_list\(|broadcast_object", re.M)
    guilty = [str(file.relative_to(package)) for room in ("rollout", "weights", "launch", "ledger")
              for file in (package / room).rglob("*.py") if pickling.search(file.read_text())]
    assert guilty == []
