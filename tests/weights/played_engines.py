"""Engines without a model: vLLM's own routes, its own way from a route to the workers, and our real receivers.

    FleetClient ── HTTP ──► vLLM's router ──► AsyncLLM's methods ──► collective_rpc ──► WeightReceiver of each worker

A worker's model only remembers what it was given. What is said to the routes is kept as it came (`said`). Whether an
engine is within an update is kept as vLLM's worker keeps it.
"""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from types import SimpleNamespace
from typing import Any

import torch
import uvicorn
from fastapi import FastAPI, Request
from vllm.config import ParallelConfig
from vllm.entrypoints.rl.online.api_router import router
from vllm.entrypoints.serve.dev.rpc.api_router import router as workers_router
from vllm.v1.engine.async_llm import AsyncLLM

from siri_megatron.rollout.fleet import Engine
from siri_megatron.weights.engine_extension import EngineExtension, WeightReceiver


class Remembering(torch.nn.Module):
    """A model that keeps every tensor that it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.given: dict[str, torch.Tensor] = {}

    def load_weights(self, weights: Iterator[tuple[str, torch.Tensor]]) -> set[str]:
        new = {name: tensor.clone() for name, tensor in weights}
        self.given |= new
        return set(new)


class PlayedEngine(EngineExtension):
    """The parts of AsyncLLM that weights pass through, and the mark of vLLM's worker; the rest is not there."""

    init_weight_transfer_engine = AsyncLLM.init_weight_transfer_engine
    start_weight_update = AsyncLLM.start_weight_update
    update_weights = AsyncLLM.update_weights
    finish_weight_update = AsyncLLM.finish_weight_update
    update_weight_version = AsyncLLM.update_weight_version
    get_weight_version = AsyncLLM.get_weight_version

    def __init__(self, tp: int) -> None:
        self.tp, self.version, self.said = tp, "", []
        self.paused = self._weight_update_active = False
        self.engine_core = self
        self.workers = [receiver(tp, rank) for rank in range(tp)]
        self._threads = ThreadPoolExecutor(tp)

    async def set_weight_version_async(self, version: str) -> None:
        self.version = version

    async def get_weight_version_async(self) -> str:
        return self.version

    async def resume_generation(self) -> None:
        self.paused = False

    async def collective_rpc(self, method: str, timeout: float | None = None, args: tuple[Any, ...] = (),
                             kwargs: dict[str, Any] | None = None) -> None:
        """As vLLM's executor does it: every worker gets the same call, all at once."""
        self.said.append((method, kwargs))
        if method == "abandon_weight_update":
            self.abandon_weight_update()
            return
        self._check_turn(method)
        try:
            await self._on_workers(method, kwargs or {})
        except BaseException:
            self._weight_update_active &= method != "update_weights"
            raise
        if method in ("start_weight_update", "finish_weight_update"):
            self._weight_update_active = method == "start_weight_update"

    def _check_turn(self, method: str) -> None:
        if method == "start_weight_update" and self._weight_update_active:
            raise RuntimeError("start_weight_update called while a weight update is already active")
        if method in ("update_weights", "finish_weight_update") and not self._weight_update_active:
            raise RuntimeError(f"start_weight_update must be called before {method}")

    async def _on_workers(self, method: str, kwargs: dict[str, Any]) -> None:
        loop = asyncio.get_running_loop()
        await asyncio.gather(*(loop.run_in_executor(self._threads, _call, worker, method, dict(kwargs))
                               for worker in self.workers))


def receiver(tp: int, rank: int) -> WeightReceiver:
    parallel = ParallelConfig(tensor_parallel_size=tp, distributed_executor_backend="mp")
    parallel.rank = rank
    config: Any = SimpleNamespace(parallel_config=parallel, model_config=None)
    return WeightReceiver(None, config, torch.device("cpu"), Remembering())  # type: ignore[arg-type]


def _call(worker: WeightReceiver, method: str, kwargs: dict[str, Any]) -> None:
    if method == "init_weight_transfer_engine":
        worker.init_transfer_engine(worker.parse_init_info(kwargs["init_info"]))
    elif method == "update_weights":
        worker.update_weights(kwargs["update_info"])  # start and finish re-pack layers, of which there are none


@contextmanager
def played_fleet(tps: Sequence[int]) -> Iterator[tuple[list[PlayedEngine], tuple[Engine, ...]]]:
    """Engines with these tensor-parallel sizes, and their addresses."""
    played = [PlayedEngine(tp) for tp in tps]
    with ExitStack() as stack:
        urls = [stack.enter_context(_served(engine)) for engine in played]
        yield played, tuple(Engine(i, url, tp) for i, (url, tp) in enumerate(zip(urls, tps, strict=True)))


@contextmanager
def _served(engine: PlayedEngine) -> Iterator[str]:
    app = FastAPI()
    app.include_router(router)
    app.include_router(workers_router)
    app.state.engine_client = engine

    @app.post("/reset_prefix_cache")
    async def reset(request: Request) -> dict[str, bool]:
        return {"success": True}

    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        server = uvicorn.Server(uvicorn.Config(app, log_level="error", lifespan="off"))
        thread = threading.Thread(target=server.run, args=([listening],))
        thread.start()
        try:
            while not server.started:
                time.sleep(0.01)
            yield f"http://127.0.0.1:{listening.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join(10)
