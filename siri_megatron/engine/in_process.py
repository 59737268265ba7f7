"""vLLM's `EngineClient` on an engine in this very process, stepped between the turns of the event loop.

The stock server keeps its engine core in a process of its own and sends every token there and back by ZeroMQ: with both
on one core, that is a good part of what a small model takes to sample one. Here an `LLMEngine` (which `vllm.LLM`
wraps) is stepped by a task of the server's event loop; requests and answers are objects that change hands. For one core
and one worker: while a step runs, no request is read.

Invariants:

- same_routes: everything that the stock server serves and this package uses is served, with the same meaning.
- answered: each request ends with its samples, or raises: an abort brings what was sampled so far.
- idle_is_idle: without requests, or while paused, nothing is stepped.
- dead_is_dead: after a step has raised, every request fails, /health fails, and the server ends.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Iterable
from typing import Any

from vllm.distributed.weight_transfer.base import WeightTransferInitRequest, WeightTransferUpdateRequest
from vllm.engine.protocol import EngineClient
from vllm.outputs import RequestOutput
from vllm.sampling_params import SamplingParams
from vllm.v1.core.sched.interface import PauseState
from vllm.v1.engine.exceptions import EngineDeadError, EngineGenerateError
from vllm.v1.engine.llm_engine import LLMEngine
from vllm.v1.engine.output_processor import RequestOutputCollector

TURNS = 8
"""Of the event loop between two steps: a request takes about so many from its bytes to the engine."""


class InProcessEngine(EngineClient):
    """Make it within the running event loop."""

    def __init__(self, engine: LLMEngine) -> None:
        self.engine = engine
        self.vllm_config, self.model_config = engine.vllm_config, engine.model_config
        self.renderer, self.input_processor = engine.renderer, engine.input_processor
        self._core = engine.engine_core.engine_core
        self._failure: BaseException | None = None
        self._work = asyncio.Event()
        self._loop = asyncio.get_running_loop()
        self._stepping = self._loop.create_task(self._step_for_ever(), name="step the engine")

    async def _step_for_ever(self) -> None:
        while True:
            await self._work.wait()
            self._work.clear()
            try:
                while self._core.scheduler.has_requests():
                    self.engine.step()  # answers go to the collectors of the requests
                    for _ in range(TURNS):
                        await asyncio.sleep(0)
            except Exception as error:  # whatever it is, the engine's state is unknown from now on
                self._failure = error
                self.engine.output_processor.propagate_error(EngineDeadError())
                raise

    async def generate(self, prompt: Any, sampling_params: SamplingParams, request_id: str,
                       **options: Any) -> AsyncGenerator[RequestOutput, None]:
        """Answers of a request as they come; of `FINAL_ONLY` requests the whole one."""
        if self.errored:
            raise EngineDeadError
        collector = self._add(request_id, prompt, sampling_params, options)
        try:
            finished = False
            while not finished:
                output = collector.get_nowait() or await collector.get()
                assert isinstance(output, RequestOutput)
                finished = output.finished
                yield output
        except (asyncio.CancelledError, GeneratorExit):
            await self.abort(request_id)
            raise
        except EngineDeadError:
            raise
        except Exception as error:
            raise EngineGenerateError from error

    def _add(self, request_id: str, prompt: Any, sampling: SamplingParams,
             options: dict[str, Any]) -> RequestOutputCollector:
        known = {name: options[name] for name in ("lora_request", "trace_headers", "priority") if options.get(name)}
        self.engine.add_request(request_id, prompt, sampling, **known)
        collector = RequestOutputCollector(sampling.output_kind, request_id)
        processor = self.engine.output_processor
        for internal in processor.external_req_ids[request_id]:
            processor.request_states[internal].queue = collector
        self._work.set()
        return collector

    async def abort(self, request_id: str | Iterable[str]) -> None:
        """By the names that callers gave; who waits gets what was sampled so far."""
        self.engine.abort_request([request_id] if isinstance(request_id, str) else list(request_id))
        self._work.set()  # one more step: the worker and the gauges hear of it

    # ---- pausing and weights ----

    async def pause_generation(self, *, mode: Any = "abort", clear_cache: bool = True) -> None:
        """As the stock engine: `keep` freezes what runs, `wait` lets it end, `abort` answers with what there is."""
        if mode == "abort":
            await self.abort(list(self.engine.output_processor.external_req_ids))
        if mode == "wait":
            self._core.scheduler.set_pause_state(PauseState.PAUSED_NEW)
            while self._core.scheduler.has_unfinished_requests():
                await asyncio.sleep(0.001)
        # In one process vLLM knows no `wait`; by now nothing runs, and what is queued must stay.
        self._core.pause_scheduler(mode="abort" if mode == "abort" else "keep", clear_cache=clear_cache)

    async def resume_generation(self) -> None:
        self._core.resume_scheduler()
        self._work.set()

    async def is_paused(self) -> bool:
        return bool(self._core.is_scheduler_paused())

    async def collective_rpc(self, method: str, timeout: float | None = None, args: tuple[Any, ...] = (),
                             kwargs: dict[str, Any] | None = None) -> list[Any]:
        return self.engine.collective_rpc(method, timeout, args, kwargs)

    async def init_weight_transfer_engine(self, init_request: WeightTransferInitRequest) -> None:
        await self.collective_rpc("init_weight_transfer_engine", kwargs={"init_info": init_request.init_info})

    async def shutdown_weight_transfer_engine(self) -> None:
        await self.collective_rpc("shutdown_weight_transfer_engine")

    async def start_weight_update(self) -> None:
        await self.collective_rpc("start_weight_update")

    async def update_weights(self, request: WeightTransferUpdateRequest) -> None:
        await self.collective_rpc("update_weights", kwargs={"update_info": request.update_info})

    async def finish_weight_update(self, weight_version: str | None = None) -> None:
        await self.collective_rpc("finish_weight_update")
        if weight_version is not None:
            await self.update_weight_version(weight_version)

    async def update_weight_version(self, new_version: str) -> None:
        self.engine.set_weight_version(new_version)

    async def get_weight_version(self) -> str:
        return self.engine.get_weight_version()

    async def reset_prefix_cache(self, reset_running_requests: bool = False, reset_connector: bool = False) -> bool:
        return self.engine.reset_prefix_cache(reset_running_requests, reset_connector)

    async def reset_mm_cache(self) -> None:
        self.engine.reset_mm_cache()

    async def reset_encoder_cache(self) -> None:
        self.engine.reset_encoder_cache()

    # ---- life ----

    @property
    def is_running(self) -> bool:
        return not self._stepping.done()

    @property
    def is_stopped(self) -> bool:
        return self._stepping.done()

    @property
    def errored(self) -> bool:
        return self._failure is not None

    @property
    def dead_error(self) -> BaseException:
        return EngineDeadError()

    async def check_health(self) -> None:
        if self.errored:
            raise self.dead_error

    async def get_supported_tasks(self) -> Any:
        return self.engine.get_supported_tasks()

    async def is_tracing_enabled(self) -> bool:
        return False

    async def do_log_stats(self) -> None:
        self.engine.do_log_stats()

    def shutdown(self, timeout: float | None = None) -> None:
        """vLLM calls it from another thread. Memory and worker go with the process."""
        self._loop.call_soon_threadsafe(self._stepping.cancel)

    # ---- what nobody asks of a rollout engine ----

    def encode(self, *_: Any, **__: Any) -> Any:
        raise NotImplementedError("a rollout engine does not embed")

    async def notify_kv_transfer_request_rejected(self, *_: Any, **__: Any) -> None:
        raise NotImplementedError("a rollout engine has no KV connector")

    async def start_profile(self, *_: Any, **__: Any) -> None:
        raise NotImplementedError("profile the process instead")

    async def stop_profile(self) -> None:
        raise NotImplementedError("profile the process instead")

    async def sleep(self, level: int = 1, mode: Any = "abort") -> None:
        raise NotImplementedError("an engine on a CPU does not sleep")

    async def release_kv_cache_memory(self) -> None:
        raise NotImplementedError("an engine on a CPU does not sleep")

    async def wake_up(self, tags: list[str] | None = None) -> bool:
        raise NotImplementedError("an engine on a CPU does not sleep")

    async def is_sleeping(self) -> bool:
        return False

    async def add_lora(self, lora_request: Any) -> bool:
        raise NotImplementedError("rollout engines take whole weights")
