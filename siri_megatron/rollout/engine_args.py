"""How an unmodified `vllm serve` process is started. Pure: config in, argv and environment out.

Invariants:

- guarded: every engine runs behind `engine_guard` and binds the configured host only.
- provisioned: context and KV cache are those of the largest cap; nothing here depends on the current cap.
- true_log_probs: returned log-probs are those of the sampling distribution (`processed_logprobs`: temperature applied).
- apart: engines differ in port and in seed, so unseeded engines never draw the same stream.
- same_bits: a log-prob of a reproducible run does not depend on what else is in the batch (`_cpu_environment`,
  `_cuda_environment`; shown by tests/rollout/test_engine_sampling.py and test_attention_bits.py).
- clean: rank variables of a launcher and proxies of the shell do not reach the engine.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from siri_megatron.config import RunConfig
from siri_megatron.launch.cores import share_cores
from siri_megatron.rollout.engine_api import SERVED_MODEL
from siri_megatron.rollout.engine_guard import KEY_FILE_VARIABLE
from siri_megatron.rollout.vllm_surface import INSECURE, SERVER

EXTENSION = "siri_megatron.weights.engine_extension.EngineExtension"
GUARD = "siri_megatron.rollout.engine_guard.RunKeyGuard"
COMPACT = "siri_megatron.engine.compact_answers.CompactAnswers"
IN_PROCESS = "siri_megatron.engine.serve"
BATCHED_TOKENS = 2048
"""Tokens of an engine step on CPU, as vLLM has it for servers."""

# Left over from torchrun, srun or a shell; any of them would change how a server or its workers start.
DROPPED = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT",
           "VLLM_CPU_KVCACHE_SPACE", "VLLM_CPU_OMP_THREADS_BIND", "VLLM_API_KEY", "VLLM_PORT", *INSECURE,
           "http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY")

Device = Literal["cpu", "cuda"]


@dataclass(frozen=True)
class EngineLaunch:
    """One engine process: its command line, and the variables to lay over the parent's environment."""

    argv: tuple[str, ...]
    env: dict[str, str]

    def environment(self, base: Mapping[str, str]) -> dict[str, str]:
        """The whole environment of the process."""
        return {name: value for name, value in base.items() if name not in DROPPED} | self.env


def engine_launch(config: RunConfig, index: int, port: int, *, key_file: Path, cores: Sequence[int],
                  device: Device = "cpu", python: str = sys.executable, gpus: Sequence[str] = ()) -> EngineLaunch:
    """Command line and environment of engine `index`.

    Args:
        port: the port it shall listen on.
        key_file: file with the run's key.
        cores: CPU cores this job may use; the engines' part is shared out evenly, and pinned if the config says so.
        device: `cpu` adds what vLLM's CPU build needs.
        gpus: the devices that this engine may use (`cuda` only); empty: all.
    """
    cores = share_cores(config, cores).engines
    threads = max(1, len(cores) // config.engines.count)
    mine = [cores[(index * threads + i) % len(cores)] for i in range(threads)]
    pinned = config.learner.pin_cores and device == "cpu"
    pin = ("taskset", "-c", ",".join(map(str, mine))) if pinned else ()
    # The server behind `vllm serve`. The console script itself asks for the metadata of a package named `vllm`, which
    # the CPU build does not have, and imports every subcommand first.
    serve = (python, "-m", IN_PROCESS if config.engines.in_process else SERVER, "--model", str(config.model.path))
    argv = (*pin, *serve, *_arguments(config, index, port), *_device_arguments(config, device))
    env = _environment(key_file) | (_cpu_environment(config, mine, pinned=pinned) if device == "cpu"
                                    else _cuda_environment(config, gpus))
    return EngineLaunch(argv=(*argv, *config.engines.extra_args), env=env)


def options(launch: EngineLaunch) -> set[str]:
    """Names of the server's options on a command line, as vLLM's own fields are called."""
    words = launch.argv[launch.argv.index(SERVER) + 1:]
    return {word[2:].removeprefix("no-").replace("-", "_") for word in words if word.startswith("--")}


def _arguments(config: RunConfig, index: int, port: int) -> tuple[str, ...]:
    return (
        "--host", config.engines.host, "--port", str(port), "--served-model-name", SERVED_MODEL,
        "--dtype", config.model.dtype, "--max-model-len", str(config.max_model_len),
        "--max-num-seqs", str(config.engines.max_num_seqs), "--seed", str(config.seed + index),
        "--tensor-parallel-size", str(config.engines.tp),
        # Token ids in and out: no tokenizer, no detokenising, and weight-version spans in every answer.
        "--tokens-only", "--logprobs-mode", "processed_logprobs",
        # vLLM's defaults instead of the model's generation_config.json, which may set top_p or a temperature.
        "--generation-config", "vllm",
        "--worker-extension-cls", EXTENSION,
        "--weight-transfer-config", json.dumps({"backend": "siri"}),
        # Requests of several steps wait together: those of the earlier one go first, whenever they come.
        *(("--scheduling-policy", "priority") if config.rollout.lag else ()),
        # The last one is outermost: nothing is answered before the guard has seen the key.
        "--middleware", COMPACT, "--middleware", GUARD,
        "--disable-uvicorn-access-log", "--uvicorn-log-level", "warning",
    )


def _device_arguments(config: RunConfig, device: Device) -> tuple[str, ...]:
    # A cached prefix is computed in another batch shape than a fresh one: not the same bits on resume.
    exact = ("--no-enable-prefix-caching",) if config.reproducible else ()
    if device == "cuda":
        return exact
    tp = config.engines.tp
    return (*exact, *_whole_prefills(config), "--enforce-eager",
            "--distributed-executor-backend", "uni" if tp == 1 else "mp",
            "--kv-cache-memory-bytes", str(int(config.engines.kv_cache_gib * 2**30) // tp))  # vLLM counts it a worker


def _whole_prefills(config: RunConfig) -> tuple[str, ...]:
    """No prefill in parts where requests have seeds: vLLM then sets a request's generator back, which torch's CPU one
    cannot (`gpu_model_runner._bookkeeping_sync`: "CPU Generator does not use offset"), and the engine dies."""
    if not config.reproducible:
        return ()
    return "--no-enable-chunked-prefill", "--max-num-batched-tokens", str(max(BATCHED_TOKENS, config.max_model_len))


def _environment(key_file: Path) -> dict[str, str]:
    return {
        KEY_FILE_VARIABLE: str(key_file),
        "VLLM_SERVER_DEV_MODE": "1",  # registers the weight-transfer routes
        "VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1", "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false",
        # vLLM closes idle connections after 5 s, in the middle of a training step; a client would then hit a dead one.
        "VLLM_HTTP_TIMEOUT_KEEP_ALIVE": "600",
    }


def _cpu_environment(config: RunConfig, cores: Sequence[int], *, pinned: bool) -> dict[str, str]:
    tp = config.engines.tp
    share = max(1, len(cores) // tp)
    shares = [[cores[(rank * share + i) % len(cores)] for i in range(share)] for rank in range(tp)]
    bound = "|".join(",".join(map(str, mine)) for mine in shares) if pinned else "nobind"
    return {
        # Only workers in processes of their own read it. Its default, "auto", sets a core a worker aside for the
        # server, and finds none left on a small machine.
        **({"VLLM_CPU_OMP_THREADS_BIND": bound} if tp > 1 else {}),
        # An engine of several threads would cut a sequence's keys between them, where depends on the whole batch.
        **({"VLLM_CPU_ATTN_SPLIT_KV": "0"} if config.reproducible else {}),
        # With the engine core in a process of its own, the CPU platform silently turns `uni` into `mp`.
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        # Without it the first request for log-probs compiles for many seconds.
        "TORCH_COMPILE_DISABLE": "1",
        "OMP_NUM_THREADS": str(share), "CUDA_VISIBLE_DEVICES": "",
    }


def _cuda_environment(config: RunConfig, gpus: Sequence[str]) -> dict[str, str]:
    exact = {"VLLM_BATCH_INVARIANT": "1"} if config.reproducible else {}
    return exact | ({"CUDA_VISIBLE_DEVICES": ",".join(gpus)} if gpus else {})
