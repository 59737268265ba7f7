"""The memory that a process may use, and what the launch check says of a run that is too large for it."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest
from launch_models import write_form
from test_preflight import config

from siri_megatron.errors import ConfigError
from siri_megatron.launch import memory
from siri_megatron.launch.model_files import inspect_model
from siri_megatron.launch.spec import Machine
from siri_megatron.learner.architecture import Architecture

CPU = Machine(cores=(0, 1))
MIB, GIB = 2**20, 2**30


def machine(root: Path, group: str, limits: dict[str, str]) -> Path:
    """A file system that says: 8 GiB, this cgroup, these limits."""
    files = {"proc/meminfo": f"MemFree: 1 kB\nMemTotal: {8 * MIB} kB\n", "proc/self/cgroup": group} | limits
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


@pytest.mark.parametrize(("group", "limits", "wanted"), [
    ("", {}, 8 * GIB),
    ("0::/\n", {"sys/fs/cgroup/memory.max": f"{2 * GIB}\n"}, 2 * GIB),
    ("0::/job\n", {"sys/fs/cgroup/job/memory.max": "max\n"}, 8 * GIB),
    ("0::/job/step\n", {"sys/fs/cgroup/job/step/memory.max": "max", "sys/fs/cgroup/job/memory.max": f"{GIB}"}, GIB),
    ("0::/outside/path\n", {"sys/fs/cgroup/memory.max": f"{3 * GIB}"}, 3 * GIB),
    ("5:cpu,memory:/docker/x\n0::/\n", {"sys/fs/cgroup/memory/docker/x/memory.limit_in_bytes": f"{4 * GIB}"}, 4 * GIB),
    ("5:memory:/x\n", {"sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712"}, 8 * GIB),
], ids=["none", "container", "unlimited", "above", "seen from inside", "version 1", "version 1 unlimited"])
def test_the_tightest_limit_counts(tmp_path: Path, group: str, limits: dict[str, str], wanted: int) -> None:
    assert memory.memory_limit(machine(tmp_path, group, limits)) == wanted


def test_this_machine_has_memory() -> None:
    assert 2**28 < memory.memory_limit() < 2**50


def test_a_run_that_does_not_fit_is_refused_with_both_numbers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = inspect_model(write_form(tmp_path / "m"))
    monkeypatch.setattr(memory, "memory_limit", lambda: 6 * GIB)
    memory.check_memory(config(), model, "train", CPU)
    large = config(batching={"tokens_per_micro_batch": 1 << 24}, rollout={"prompts_per_step": 1 << 20})
    with pytest.raises(ConfigError, match=r"takes \d+\.\d\d GiB, the machine has 6\.00 GiB") as refused:
        memory.check_memory(large, model, "train", CPU)
    assert "Most goes to micro-batches of 16777216 tokens in 1 learners" in refused.value.what
    assert refused.value.fix.startswith("batching.tokens_per_micro_batch=")
    memory.check_memory(large, model, "eval", CPU)  # no learners
    engines = config(engines={"kv_cache_gib": 40})
    memory.check_memory(engines, model, "replay", CPU)  # no engines
    with pytest.raises(ConfigError, match=r"2 engines x engines\.kv_cache_gib=40: 80\.00 GiB"):
        memory.check_memory(engines, model, "rollout-only", CPU)


def test_a_learner_that_does_not_fit_its_gpu_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = inspect_model(write_form(tmp_path / "m"))
    with pytest.raises(ConfigError, match=r"a learner of stage 0 takes 2\.\d\d GiB, the GPU has 1\.00 GiB"):
        memory.check_gpu(config(), Architecture.of(model.config), GIB)
    memory.check_gpu(config(), Architecture.of(model.config), 80 * GIB)
    gpu = Machine(cores=(0,), device="cuda")
    for answer, refused in (("81920\n1024\n", True), ("81920\n", False), ("[N/A]\n", False)):
        tool(tmp_path, monkeypatch, answer)
        if refused:
            with pytest.raises(ConfigError, match="the GPU has"):
                memory.check_memory(config(), model, "train", gpu)
        else:
            memory.check_memory(config(), model, "train", gpu)


def test_no_tool_or_one_that_fails_says_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert memory.gpu_bytes() is None
    tool(tmp_path, monkeypatch, "81920\n", code=9)
    assert memory.gpu_bytes() is None


def tool(place: Path, monkeypatch: pytest.MonkeyPatch, answer: str, code: int = 0) -> None:
    """An nvidia-smi that answers this."""
    path = place / "nvidia-smi"
    path.write_text(f"#!/bin/sh\ncat <<'END'\n{answer}END\nexit {code}\n")
    path.chmod(path.stat().st_mode | stat.S_IEXEC)
    monkeypatch.setenv("PATH", f"{place}:/usr/bin:/bin")
