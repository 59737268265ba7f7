"""Every learner and every worker of an engine has a GPU of its own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from siri_megatron.config import RunConfig, validate
from siri_megatron.errors import ConfigError
from siri_megatron.launch import gpus
from siri_megatron.launch.spec import Machine


def config(**sections: Any) -> RunConfig:
    raw: dict[str, Any] = {"name": "r", "model": {"path": "m"}, "optimizer": {"lr": 1e-4},
                           "budget": {"l_min": 8, "l_max": 64, "cycle_steps": 4, "cycles": 2}}
    return validate(raw | sections, "test")


def test_every_learner_and_worker_has_a_gpu_of_its_own() -> None:
    machine = Machine(cores=(0,), device="cuda", gpus=("0", "1", "2", "3"))
    fits = config(learner={"tp": 2}, engines={"count": 1, "tp": 2})
    gpus.check_gpus(fits, "train", machine)
    with pytest.raises(ConfigError, match=r"2 learners and 2 engines x engines\.tp=2 take 6 GPUs, this machine has 4"):
        gpus.check_gpus(config(learner={"tp": 2}, engines={"count": 2, "tp": 2}), "train", machine)
    gpus.check_gpus(config(learner={"tp": 2}, engines={"count": 2, "tp": 2}), "eval", machine)
    gpus.check_gpus(config(engines={"count": 9}), "train", Machine(cores=(0,)))


def test_what_runs_on_one_machine_is_checked_there_whatever_the_nodes() -> None:
    launch = {"nodes": 2, "learner": {"gpus_per_node": 2}, "engines": {"gpus_per_node": 2}}
    run = config(learner={"tp": 2}, engines={"count": 2}, push={"backend": "nccl"}, launch=launch)
    machine = Machine(cores=(0,), device="cuda", gpus=("0",))
    gpus.check_gpus(run, "train", machine)
    with pytest.raises(ConfigError, match="take 2 GPUs, this machine has 1"):
        gpus.check_gpus(run, "eval", machine)


def test_visible_gpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A scheduler hands out some of them; without NVIDIA devices there are none, whatever the variable says."""
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    for name in ("nvidia0", "nvidia10", "nvidia2", "nvidiactl", "nvidia-uvm"):
        (tmp_path / name).touch()
    assert gpus.visible_gpus(tmp_path) == ("0", "2", "10")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2, 10")
    assert gpus.visible_gpus(tmp_path) == ("2", "10")
    assert gpus.visible_gpus(tmp_path / "none") == ()
