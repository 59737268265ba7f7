"""How engines are started: a pure function of the configuration."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from engine_fleet import fleet_config

from siri_megatron.config import RunConfig
from siri_megatron.errors import ConfigError
from siri_megatron.rollout.engine_args import DROPPED, GUARD, IN_PROCESS, EngineLaunch, engine_launch
from siri_megatron.rollout.engine_guard import KEY_FILE_VARIABLE
from siri_megatron.rollout.vllm_surface import SERVER


def config(**sections: Any) -> RunConfig:
    return fleet_config(Path("model"), Path("runs"), **sections)


def launch(index: int = 0, given: RunConfig | None = None, **options: Any) -> EngineLaunch:
    defaults: dict[str, Any] = {"key_file": Path("/run/.key"), "cores": [0, 1], "device": "cpu"}
    return engine_launch(given or config(), index, 8000 + index, **(defaults | options))


def value(engine: EngineLaunch, flag: str) -> str:
    return engine.argv[engine.argv.index(flag) + 1]


def test_guarded() -> None:
    engine = launch()
    assert [given for flag, given in pairwise(engine.argv) if flag == "--middleware"][-1] == GUARD, "outermost"
    assert value(engine, "--host") == "127.0.0.1"
    assert engine.env[KEY_FILE_VARIABLE] == "/run/.key"


def test_provisioned_for_the_largest_cap() -> None:
    given = config(budget={"l_min": 16, "l_max": 100, "cycle_steps": 2, "cycles": 1}, data={"max_prompt_tokens": 30},
                   evaluation={"budgets": (32, 200)})
    assert value(launch(given=given), "--max-model-len") == "256"  # 30 + 200, rounded up to 32
    assert value(launch(given=given), "--kv-cache-memory-bytes") == str(2**27)


def test_true_log_probs() -> None:
    assert value(launch(), "--logprobs-mode") == "processed_logprobs"
    assert value(launch(), "--generation-config") == "vllm"


def test_steps_are_told_apart_where_there_are_several() -> None:
    """Requests have a priority only with a lag; an engine without this policy does not look at it."""
    ahead = config(reproducible=False, rollout={"lag": 1})
    assert value(launch(given=ahead), "--scheduling-policy") == "priority"
    assert "--scheduling-policy" not in launch().argv


def test_apart() -> None:
    engines = [launch(index) for index in (0, 1)]
    for flag in ("--port", "--seed"):
        assert value(engines[0], flag) != value(engines[1], flag)


def test_clean() -> None:
    base = dict.fromkeys(DROPPED, "x") | {"PATH": "/bin"}
    environment = launch().environment(base)
    assert not set(DROPPED) & set(environment)
    assert environment["PATH"] == "/bin"


def test_cores_are_shared_out_and_pinned_on_request() -> None:
    pinned = config(learner={"pin_cores": True})
    assert launch(1, pinned).argv[:3] == ("taskset", "-c", "1")
    assert launch(1, pinned, cores=[4, 5, 6, 7]).argv[:3] == ("taskset", "-c", "6,7")
    assert launch(1, pinned, cores=[4, 5, 6, 7]).env["OMP_NUM_THREADS"] == "2"
    assert launch(1, pinned, cores=[3]).argv[:3] == ("taskset", "-c", "3")
    assert launch(1).argv[0] != "taskset"


@pytest.mark.parametrize("flag", ["--enforce-eager", "--distributed-executor-backend", "--kv-cache-memory-bytes"])
def test_cpu_specifics_fall_away_on_a_gpu(flag: str) -> None:
    assert flag in launch().argv
    gpu = launch(device="cuda")
    assert flag not in gpu.argv
    assert not {"TORCH_COMPILE_DISABLE", "OMP_NUM_THREADS", "CUDA_VISIBLE_DEVICES"} & set(gpu.env)


def test_reproducible_runs_cache_no_prefixes() -> None:
    assert "--no-enable-prefix-caching" in launch().argv
    assert "--no-enable-prefix-caching" not in launch(given=config(reproducible=False)).argv


def test_same_bits() -> None:
    assert launch().env["VLLM_CPU_ATTN_SPLIT_KV"] == "0"
    assert "VLLM_CPU_ATTN_SPLIT_KV" not in launch(given=config(reproducible=False)).env
    assert launch(device="cuda").env["VLLM_BATCH_INVARIANT"] == "1"


def test_seeded_requests_are_prefilled_whole_on_a_cpu() -> None:
    """What an engine step may hold is then at least a whole sequence; vLLM refuses less."""
    argv = launch().argv
    assert "--no-enable-chunked-prefill" in argv
    assert int(argv[argv.index("--max-num-batched-tokens") + 1]) >= max(2048, config().max_model_len)
    for other in (launch(device="cuda"), launch(given=config(reproducible=False))):
        assert "--no-enable-chunked-prefill" not in other.argv


def test_engines_of_several_workers() -> None:
    """Workers are processes with a share of the engine's cores, and of its KV cache (vLLM's flag is a worker's)."""
    two = config(engines={"tp": 2, "kv_cache_gib": 0.5, "count": 1}, learner={"pin_cores": True})
    engine = launch(given=two, cores=[4, 5, 6, 7])
    assert value(engine, "--tensor-parallel-size") == "2"
    assert value(engine, "--distributed-executor-backend") == "mp"
    assert value(engine, "--kv-cache-memory-bytes") == str(2**28)
    assert engine.env["VLLM_CPU_OMP_THREADS_BIND"] == "4,5|6,7"
    assert engine.env["OMP_NUM_THREADS"] == "2"
    crowded = launch(1, config(engines={"tp": 2}, learner={"pin_cores": True}))
    assert crowded.env["VLLM_CPU_OMP_THREADS_BIND"] == "1|1"
    assert launch(given=config(engines={"tp": 2})).env["VLLM_CPU_OMP_THREADS_BIND"] == "nobind"
    assert value(launch(), "--distributed-executor-backend") == "uni"
    assert "VLLM_CPU_OMP_THREADS_BIND" not in launch().env


def test_an_engine_sees_its_own_gpus() -> None:
    assert launch(device="cuda", gpus=("2", "3")).env["CUDA_VISIBLE_DEVICES"] == "2,3"
    assert "CUDA_VISIBLE_DEVICES" not in launch(device="cuda").env


@pytest.mark.parametrize("text", ["-tp", "--tensor-parallel-size=2", "-pp", "--data-parallel-size", "--tensor-par"])
def test_workers_are_counted_by_engines_tp(text: str) -> None:
    with pytest.raises(ConfigError, match="extra_args has"):
        config(engines={"extra_args": (text, "2")})


def test_extra_arguments_come_last() -> None:
    given = config(engines={"extra_args": ("--max-num-batched-tokens", "512")})
    assert launch(given=given).argv[-2:] == ("--max-num-batched-tokens", "512")


def test_an_engine_in_one_process_has_the_same_arguments_and_one_worker() -> None:
    own, stock = launch(given=config(engines={"in_process": True})), launch(given=config(engines={}))
    assert own.argv[own.argv.index("--model"):] == stock.argv[stock.argv.index("--model"):]
    assert (IN_PROCESS in own.argv, SERVER in own.argv) == (True, False)
    assert (IN_PROCESS in stock.argv, SERVER in stock.argv) == (False, True)
    with pytest.raises(ConfigError, match="one worker"):
        config(engines={"in_process": True, "tp": 2})
