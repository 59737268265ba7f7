"""Where samples come from: sampling, engines, weight push."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, Field, model_validator

from siri_megatron.config.addresses import private_host
from siri_megatron.config.base import Budgets, Section

PARALLEL_FLAGS = ("--tensor-parallel-size", "-tp", "--pipeline-parallel-size", "-pp", "--data-parallel-size", "-dp")
OURS = ("--host", "--port", "--uds", "--model", "--served-model-name", "--tokens-only", "--logprobs-mode",
        "--worker-extension-cls", "--weight-transfer-config", "--grpc-port", "--api-server-count")
"""Options of the server that `engine_args` sets, or that would open a door without a lock."""


class RolloutConfig(Section):
    prompts_per_step: int = Field(16, ge=1)
    """Prompts (groups) a step."""
    samples_per_prompt: int = Field(8, ge=2)
    """Samples a prompt: the group size G of GRPO."""
    temperature: float = Field(1.0, gt=0)
    """Sampling temperature; the learner rescales its logits by the same value."""
    lag: int = Field(0, ge=0)
    """Steps that the collector may run ahead of the learners, and so the most steps that a token may be old."""
    budget_grid: Budgets = (32, 48, 64, 96, 128)
    """Budgets at which every rollout is re-scored: the curve J(B). One above the step's cap counts as the cap."""
    max_refill: float = Field(0.0, ge=0)
    """Dynamic sampling: groups without a signal are replaced, by at most so many times prompts_per_step; 0: never."""
    timeout_s: float = Field(300.0, gt=0)
    """Seconds that the collection of prompts_per_step groups may take at budget.l_max; half of them are for whatever
    the cap, half in proportion to it. With a lag each of the lag + 1 steps at a time has the full time for all."""


class EngineConfig(Section):
    count: int = Field(2, ge=1)
    """Number of vLLM servers."""
    tp: int = Field(1, ge=1)
    """Tensor-parallel size of each engine: its workers, on a GPU machine its GPUs."""
    max_num_seqs: int = Field(256, ge=1)
    """Concurrent sequences an engine."""
    max_model_len: int | None = None
    """Engine context, tokens; None: max_prompt_tokens + l_max, rounded up to 32."""
    kv_cache_gib: float = Field(1.0, gt=0)
    """KV cache an engine, GiB (CPU); its tensor-parallel workers share it."""
    base_port: int = Field(0, ge=0, le=65000)
    """First port; engine i listens on base_port+i. 0: free ports are reserved by the supervisor."""
    host: Annotated[str, AfterValidator(private_host)] = "127.0.0.1"
    """IPv4 address (or name) that engines and collector bind: loopback, or a private interface."""
    start_timeout_s: float = Field(300.0, gt=0)
    """Seconds until an engine must be healthy."""
    min_engines: int = Field(1, ge=0)
    """The run goes on while so many engines are up; 0: it waits even for the restart of the last one."""
    max_restarts: int = Field(5, ge=0)
    """Restarts of one engine in one launch; then it stays away."""
    restart_backoff_s: float = Field(1.0, gt=0)
    """Seconds before the first restart of an engine; each further one waits twice as long as the one before."""
    suspect_s: float = Field(20.0, gt=0)
    """Seconds without an answer to /health after which an engine gets no new requests."""
    dead_s: float = Field(60.0, gt=0)
    """Seconds without an answer to /health after which an engine counts as dead: it is killed and restarted."""
    hang_s: float = Field(120.0, gt=0)
    """Seconds without an answer of the engine's core, though its server answers /health, after which it is dead."""
    extra_args: tuple[str, ...] = ()
    """Further arguments of `vllm serve`."""

    @model_validator(mode="after")
    def _can_be_kept(self) -> EngineConfig:
        if self.min_engines > self.count:
            raise ValueError(f"min_engines={self.min_engines} is above count={self.count}: lower min_engines")
        if self.suspect_s > self.dead_s:
            raise ValueError(f"suspect_s={self.suspect_s:g} is above dead_s={self.dead_s:g}: an engine is suspect "
                             "before it is dead; lower suspect_s")
        return self

    @model_validator(mode="after")
    def _workers_are_counted(self) -> EngineConfig:
        for text in self.extra_args:
            if text.partition("=")[0] in PARALLEL_FLAGS:
                raise ValueError(f"extra_args has {text}, tp={self.tp}: the push counts an engine's workers by "
                                 "engines.tp; set that instead (one engine is cut by tensor parallelism only)")
        return self

    @model_validator(mode="after")
    def _lock_stays_on_the_door(self) -> EngineConfig:
        for text in self.extra_args:
            name = text.partition("=")[0].replace("_", "-")
            if name.startswith("--") and any(option.startswith(name) for option in OURS):  # argparse takes beginnings
                raise ValueError(f"extra_args has {text}: the run sets that, or it would pass by the key; leave it out")
        return self

    @model_validator(mode="after")
    def _ports_exist(self) -> EngineConfig:
        if self.base_port and (last := self.base_port + self.count - 1) > 65535:
            raise ValueError(f"base_port={self.base_port} with count={self.count} reaches port {last}: ports end at "
                             "65535; lower base_port")
        return self


class PushConfig(Section):
    backend: Literal["shm", "gloo", "nccl"] = "shm"
    """Weight transport: shared memory (one host), gloo (any hosts, CPU), nccl (GPU)."""
    timeout_s: float = Field(120.0, gt=0)
    """Deadline of one attempt at a push, enforced from outside the collective."""
    max_tries: int = Field(3, ge=1)
    """Attempts at one push: after each failure the fleet is stale, and the push is repeated with the engines left."""
