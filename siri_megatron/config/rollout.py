"""Where samples come from: sampling, engines, weight push."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, model_validator

from siri_megatron.config.addresses import private_host, server_url
from siri_megatron.config.base import Budgets, Section

PARALLEL_FLAGS = ("--tensor-parallel-size", "-tp", "--pipeline-parallel-size", "-pp", "--data-parallel-size", "-dp")
OURS = ("--host", "--port", "--uds", "--model", "--served-model-name", "--tokens-only", "--logprobs-mode",
        "--worker-extension-cls", "--weight-transfer-config", "--grpc-port", "--api-server-count",
        "--tensor-parallel-size", "--pipeline-parallel-size", "--data-parallel-size")
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
    lowered_cap: Literal["keep", "cut", "drop"] = "keep"
    """lag: groups in flight when a later step has a smaller cap: they keep theirs, are cut at it, or begun anew."""
    budget_grid: Budgets = (32, 48, 64, 96, 128)
    """Budgets at which every rollout is re-scored: the curve J(B). One above the step's cap counts as the cap."""
    max_refill: float = Field(0.0, ge=0)
    """Dynamic sampling: groups without a signal are replaced, by at most so many times prompts_per_step; 0: never."""
    timeout_s: float = Field(300.0, gt=0)
    """Seconds that the collection of prompts_per_step groups may take at budget.l_max; half of them are for whatever
    the cap, half in proportion to it. With a lag each of the lag + 1 steps at a time has the full time for all."""


    @model_validator(mode="after")
    def _lowered_cap_is_read(self) -> RolloutConfig:
        if self.lowered_cap != "keep" and not self.lag:
            raise ValueError(f"lowered_cap={self.lowered_cap} with lag=0, where no later step is admitted while "
                             "groups are in flight: leave lowered_cap out, or set lag=1")
        return self


class EngineConfig(Section):
    count: int = Field(2, ge=1)
    """Number of vLLM servers."""
    urls: tuple[Annotated[str, AfterValidator(server_url)], ...] = ()
    """Engines that somebody else started (`siri engine`), as http://HOST:PORT; then none is started by the run."""
    key_file: Path | None = None
    """The file with the key of `urls`: it becomes the run's key."""
    tp: int = Field(1, ge=1)
    """Tensor-parallel size of each engine: its workers, on a GPU machine its GPUs."""
    max_num_seqs: int = Field(256, ge=1)
    """Concurrent sequences an engine."""
    admission: bool = True
    """Ask engines how full their KV cache is, and hold requests back while they preempt (docs/sampling.md)."""
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
    in_process: bool = False
    """Server and engine core of an engine in one process (CPU, one worker): faster for small models, same answers."""
    extra_args: tuple[str, ...] = ()
    """Further arguments of `vllm serve`."""

    @model_validator(mode="before")
    @classmethod
    def _urls_are_the_engines(cls, raw: Any) -> Any:
        urls = raw.get("urls") if isinstance(raw, Mapping) else None
        if not urls or not isinstance(urls, list | tuple):
            return raw
        if raw.get("count", len(urls)) != len(urls):
            raise ValueError(f"count={raw['count']} with {len(urls)} urls: leave count out, the engines are the urls")
        return {**raw, "count": len(urls)}

    @model_validator(mode="after")
    def _urls_are_told_apart(self) -> EngineConfig:
        if twice := sorted({url for url in self.urls if self.urls.count(url) > 1}):
            raise ValueError(f"urls has {twice[0]} twice: each engine has an address of its own; leave one out")
        if bool(self.urls) != (self.key_file is not None):
            raise ValueError(f"urls={list(self.urls)} with key_file={self.key_file}: engines that somebody else "
                             "started have a key of theirs, the run's own do not; give both or neither")
        if self.urls and self.base_port:
            raise ValueError(f"base_port={self.base_port} with urls, which have their ports: leave base_port out")
        return self

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
        if self.in_process and self.tp > 1:
            raise ValueError(f"in_process with tp={self.tp}: an engine in one process has one worker; leave one out")
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
    probe_every: int = Field(0, ge=0)
    """After every so many pushes engines and learner score the same tokens, and are compared; 0: never."""
    probe_bound: float = Field(0.05, gt=0)
    """Mean |engine - learner| log-prob of a probe, nats, above which the run ends; 1e-4 suits float32."""

    @model_validator(mode="after")
    def _every_key_is_read(self) -> PushConfig:
        if self.altered("probe_bound") and not self.probe_every:
            raise ValueError(f"probe_bound={self.probe_bound:g} is never read, for probe_every=0: leave probe_bound "
                             "out, or set probe_every=1")
        return self
