"""What of vLLM is used, and in what its releases differ for us. Imports nothing.

The product takes its route names from here. The rest of the contract is read off what the product does: flags and
variables from `engine_args`, fields of requests and answers from `engine_api`, classes and functions of the worker from
the imports of `weights/engine_extension`. `make test-compat` (tests/compat/test_vllm_contract.py) proves for every
release in `RELEASES` that all of it is there and means what it means in the release that the whole suite runs on,
apart from what `DIFFERENCES` says.
"""

from __future__ import annotations

from typing import Final

RELEASES: Final = ("0.32.0", "0.33.0")
"""GPU releases that are read; the first one is pinned in pyproject.toml and is the CPU lock's."""

GENERATE: Final = "/inference/v1/generate"
ABORT: Final = "/abort_requests"
HEALTH: Final = "/health"
MODELS: Final = "/v1/models"
VERSION: Final = "/version"
INIT_TRANSFER: Final = "/init_weight_transfer_engine"
START_UPDATE: Final = "/start_weight_update"
UPDATE_WEIGHTS: Final = "/update_weights"
FINISH_UPDATE: Final = "/finish_weight_update"
RESET_PREFIX_CACHE: Final = "/reset_prefix_cache"
WEIGHT_INFO: Final = "/weight_info"
NAME_WEIGHTS: Final = "/update_weight_version"
WORLD_SIZE: Final = "/get_world_size"
CORE_ALIVE: Final = "/is_sleeping"
"""One that the engine core has to answer, between two of its steps; /health does not ask it."""
ON_WORKERS: Final = "/collective_rpc"
"""Runs a method of our worker extension."""
PAUSE: Final = "/pause"
RESUME: Final = "/resume"

ROUTES: Final[dict[str, str]] = {
    GENERATE: "POST", ABORT: "POST", HEALTH: "GET", MODELS: "GET", VERSION: "GET", INIT_TRANSFER: "POST",
    START_UPDATE: "POST", UPDATE_WEIGHTS: "POST", FINISH_UPDATE: "POST", RESET_PREFIX_CACHE: "POST",
    WEIGHT_INFO: "GET", NAME_WEIGHTS: "POST", WORLD_SIZE: "GET", PAUSE: "POST", RESUME: "POST", ON_WORKERS: "POST",
    CORE_ALIVE: "GET"}
"""path -> method of every route that anything of ours asks."""

UNTOUCHED: Final = "default"
"""Weight version of an engine that has its starting weights still."""

METRICS: Final = "/metrics"
"""Mounted by the server, not one of its routes; says what follows in Prometheus' text format."""
KV_USAGE: Final = "vllm:kv_cache_usage_perc"  # a share, whatever its name says
RUNNING: Final = "vllm:num_requests_running"
WAITING: Final = "vllm:num_requests_waiting"
PREEMPTIONS: Final = "vllm:num_preemptions_total"

SERVER: Final = "vllm.entrypoints.launchers.api_server.entry"
"""The module behind `vllm serve`."""
SOCKETS: Final = "VLLM_RPC_BASE_PATH"
"""Variable that names the directory in which its processes have their sockets."""
INSECURE: Final = ("VLLM_ALLOW_INSECURE_SERIALIZATION",)
"""Variables that make an engine unpickle what comes over its sockets: never handed on to one."""

_DRAFT = "more is done for a draft model of speculative decoding, which our engines do not have"
_CPU = "it lies elsewhere; engines in one process are for CPUs, whose lock has 0.32.0"
_ARGUMENTS = "import vllm.entrypoints.launchers.cli_args"
DIFFERENCES: Final[dict[str, dict[str, str]]] = {"0.32.0": {}, "0.33.0": {
    f"{_ARGUMENTS}.make_arg_parser": _CPU, f"{_ARGUMENTS}.validate_parsed_serve_args": _CPU,
    "worker _start_weight_update": _DRAFT, "worker update_weights": _DRAFT, "worker finish_weight_update": _DRAFT}}
"""release -> item of the contract -> what its difference means for us."""
