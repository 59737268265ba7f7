"""A stand-in for vLLM's token-in, token-out route, with faults to order. For client logic only.

Its samples are a function of (prompt, seed), so two engines agree as two vLLM servers with the same weights do.
"""

from __future__ import annotations

import asyncio
import json
import random
import secrets
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from aiohttp import web

from siri_megatron.config import RunConfig, validate
from siri_megatron.data.digit_tokenizer import EOS_ID, encode, write_tokenizer
from siri_megatron.paths import RunDir
from siri_megatron.rollout.engine_api import ABORT_ROUTE, ROUTE
from siri_megatron.rollout.engine_client import EngineClient
from siri_megatron.rollout.fleet import Engine, Fleet, Pushed, confirm
from siri_megatron.rollout.vllm_surface import METRICS

Fault = Callable[[dict[str, Any]], web.StreamResponse | None]


@dataclass
class FakeEngine:
    """Counts what it is asked. `fault` may answer in its place; `version` is what its spans say."""

    version: str = "0"
    delay_s: float = 0.0
    fault: Fault | None = None
    asked: list[dict[str, Any]] = field(default_factory=list)
    keys: set[str | None] = field(default_factory=set)

    async def answer(self, request: web.Request) -> web.StreamResponse:
        body = await request.json()
        self.asked.append(body)
        self.keys.add(request.headers.get("Authorization"))
        await asyncio.sleep(self.delay_s)
        refused = self.fault(body) if self.fault else None
        return refused if refused is not None else web.json_response({"choices": self._choices(body)})

    def routes(self) -> list[web.RouteDef]:
        return [web.post(ROUTE, self.answer), web.post(ABORT_ROUTE, self.abort), web.get(METRICS, self.metrics)]

    async def abort(self, request: web.Request) -> web.StreamResponse:
        return web.Response()

    async def metrics(self, request: web.Request) -> web.StreamResponse:
        """This one has none to tell."""
        return web.Response(status=404)

    def _choices(self, body: dict[str, Any]) -> list[dict[str, Any]]:
        sampling = body["sampling_params"]
        seed = sampling.get("seed", secrets.randbits(32))
        return [self._choice(i, random.Random(f"{body['token_ids']}/{seed + i}"), sampling["max_tokens"])
                for i in range(sampling["n"])]

    def _choice(self, index: int, rng: random.Random, cap: int) -> dict[str, Any]:
        ids = [*encode("~1" * rng.randrange(9)), *encode(f"A{rng.randrange(3)}"), EOS_ID][:cap]
        content = [{"token_id": token, "logprob": -rng.random()} for token in ids]
        return {"index": index, "token_ids": ids, "logprobs": {"content": content},
                "finish_reason": "stop" if ids[-1] == EOS_ID else "length",
                "weight_versions": [{"version": self.version, "start": 0, "end": len(ids)}]}


@asynccontextmanager
async def serving(*engines: FakeEngine) -> AsyncIterator[tuple[str, ...]]:
    """URLs of the engines while they serve."""
    runners = []
    urls = []
    for engine in engines:
        app = web.Application()
        app.add_routes(engine.routes())
        runners.append(web.AppRunner(app, shutdown_timeout=0.1))
        await runners[-1].setup()
        await web.TCPSite(runners[-1], "127.0.0.1", 0).start()
        urls.append(f"http://127.0.0.1:{runners[-1].addresses[0][1]}")
    try:
        yield tuple(urls)
    finally:
        for runner in runners:
            await runner.cleanup()


def drop_connection(body: dict[str, Any]) -> web.StreamResponse | None:
    """The handler dies: the client sees HTTP 500."""
    raise RuntimeError("an engine died")


def refuse(status: int) -> Fault:
    return lambda body: web.Response(status=status, text="prompt + max_tokens exceed the context")


def run_config(place: Path, **sections: Any) -> RunConfig:
    """A run of 4 groups of 3 samples on a model directory without weights."""
    model = place / "model"
    if not model.exists():
        write_tokenizer(model)
        (model / "config.json").write_text(json.dumps({"vocab_size": 32, "eos_token_id": EOS_ID}))
    raw: dict[str, Any] = {
        "name": "run", "runs_dir": str(place), "reproducible": True, "model": {"path": str(model)},
        "budget": {"l_min": 8, "l_max": 16, "cycle_steps": 2, "cycles": 1}, "optimizer": {"lr": 1e-3},
        "data": {"train_problems": 10}, "evaluation": {"problems": 6, "samples": 2, "budgets": [8, 16]},
        "rollout": {"prompts_per_step": 4, "samples_per_prompt": 3, "budget_grid": [4, 8, 12], "timeout_s": 20.0}}
    return validate(raw | sections, "test")


def run_directory(config: RunConfig, urls: tuple[str, ...]) -> RunDir:
    """The run directory as the supervisor leaves it once engines are healthy."""
    from siri_megatron import config as configs

    paths = RunDir(config.run_dir)
    paths.root.mkdir(parents=True, exist_ok=True)
    configs.save(config, paths.config)
    paths.key.write_text("secret")
    engines = [{"index": index, "url": url, "tp": 1, "pid": 0} for index, url in enumerate(urls)]
    paths.fleet.write_text(json.dumps({"epoch": 1, "engines": engines, "model": "policy"}))
    confirm(paths, "0", ((index, 0) for index in range(len(urls))))
    return paths


def client_of(urls: Sequence[str], version: str = "0", *, key: str = "secret", connections: int = 32,
              **limits: int) -> EngineClient:
    """A client of engines that all have the weights. Made within an event loop."""
    client = EngineClient(key, connections=connections, **limits)
    engines = tuple(Engine(index, url) for index, url in enumerate(urls))
    client.follow(Fleet(1, engines), Pushed(version, frozenset(engine.key for engine in engines)))
    return client
