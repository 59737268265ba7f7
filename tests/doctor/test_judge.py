"""Made-up machines, and what is said about them."""

from __future__ import annotations

from typing import Any

import pytest

from siri_megatron.doctor.check import Check
from siri_megatron.doctor.judge import JUDGES
from siri_megatron.doctor.probes import PROBES

GIB = 2**30
CARD = {"name": "H100", "driver": "580.65", "memory_mib": 81920.0, "compute_mode": "Default"}
TORCH = {"version": "2.13.0", "devices": 1, "gpus": 1, "nccl": "2.28.3", "nccl_error": "", "infiniband": ["mlx5_0"]}
SLURM = {"version": "slurm 22.05.8", "job": "", "nodes": "", "requeue": "1", "error": ""}
SHARED = {"path": "/s", "type": "nfs4", "peer": "node n2", "errors": [], "seen_s": 0.1, "free": 900 * GIB,
          "inodes": 10**6, "skew_s": 0.01}
NODES = {"why": "", "offsets": {"n1": 0.1, "n2": -0.2}, "expected": 2, "error": ""}
LIMITS = {"files": 1048576, "locked": -1, "infiniband": []}
NETWORK = {"bound": 8, "error": "", "host": "n1", "resolves": ["10.0.0.1"]}

CASES: list[tuple[str, dict[str, Any], dict[str, Any], str, str]] = [
    ("python", {"version": [3, 11, 7], "executable": "/p", "libc": "glibc 2.36"}, {}, "python", "pass"),
    ("python", {"version": [3, 10, 1], "executable": "/p", "libc": ""}, {}, "python", "fail"),
    ("packages", {"versions": {"vllm": "0.32.0+cpu"}}, {}, "vllm", "pass"),
    ("packages", {"versions": {"vllm": "0.31.0"}}, {}, "vllm", "fail"),
    ("packages", {"versions": {"vllm": None}}, {}, "vllm", "skip"),
    ("packages", {"versions": {"megatron-core": "0.18.0"}}, {}, "megatron-core", "warn"),
    ("packages", {"versions": {"megatron-core": "0.19.2"}}, {}, "megatron-core", "pass"),
    ("gpu", {"cards": [], "why": "no nvidia-smi here"}, {}, "gpu", "skip"),
    ("gpu", {"cards": [CARD] * 8, "why": ""}, {}, "gpu", "pass"),
    ("gpu", {"cards": [CARD, CARD | {"name": "A100"}], "why": ""}, {}, "gpu", "warn"),
    ("gpu", {"cards": [CARD | {"driver": "550.90"}], "why": ""}, {}, "driver", "fail"),
    ("gpu", {"cards": [CARD | {"compute_mode": "Exclusive_Process"}], "why": ""}, {}, "compute mode", "warn"),
    ("torch", TORCH, {}, "nccl", "pass"), ("torch", TORCH, {"nccl_error": "unhandled"}, "nccl", "fail"),
    ("torch", TORCH, {"devices": 0, "gpus": 0}, "nccl", "skip"),
    ("torch", TORCH, {"devices": 0, "gpus": 8}, "torch import", "fail"),
    ("megatron", {"installed": True, "seconds": 3.0}, {}, "megatron-core import", "pass"),
    ("transformer_engine", {"installed": False}, {}, "transformer-engine import", "skip"),
    ("vllm", {"installed": True, "missing": [], "routes": 12, "options": 19}, {}, "vllm routes and flags", "pass"),
    ("vllm", {"installed": True, "missing": ["/health"], "routes": 1, "options": 1}, {}, "vllm routes and flags",
     "fail"),
    ("vllm", {"installed": False}, {}, "vllm routes and flags", "skip"),
    ("slurm", SLURM, {}, "requeue", "pass"), ("slurm", SLURM, {"requeue": "0"}, "requeue", "warn"),
    ("slurm", SLURM, {"requeue": ""}, "requeue", "skip"), ("slurm", SLURM, {"version": ""}, "slurm", "skip"),
    ("slurm", SLURM, {"error": "Unable to contact slurm controller"}, "slurm", "fail"),
    ("shared", SHARED, {}, "shared files", "pass"), ("shared", SHARED, {"type": "tmpfs"}, "shared files", "warn"),
    ("shared", SHARED, {"errors": ["flock was granted twice"]}, "shared files", "fail"),
    ("shared", SHARED, {"free": 10 * GIB}, "free space", "warn"),
    ("shared", SHARED, {"free": 10}, "free space", "fail"),
    ("shared", SHARED, {"inodes": 3}, "free space", "fail"),
    ("shared", SHARED, {"inodes": None}, "free space", "pass"),
    ("shared", SHARED, {"skew_s": -2.0}, "clock against files", "warn"),
    ("shared", SHARED, {"skew_s": 9.0}, "clock against files", "fail"),
    ("nodes", NODES, {}, "clocks of 2 nodes", "pass"),
    ("nodes", NODES, {"offsets": {"n1": 3.0, "n2": -3.0}}, "clocks of 2 nodes", "fail"),
    ("nodes", NODES, {"offsets": {"n1": 0.0}}, "clocks of the nodes", "fail"),
    ("nodes", NODES, {"why": "not inside a job of several nodes"}, "clocks of the nodes", "skip"),
    ("shm", {"size": 64 * GIB, "free": 60 * GIB}, {}, "/dev/shm", "pass"),
    ("shm", {"size": 64 * 2**20, "free": 60 * 2**20}, {}, "/dev/shm", "fail"),
    ("shm", {"size": GIB, "free": GIB // 2}, {}, "/dev/shm", "warn"),
    ("shm", {"size": 0, "free": 0}, {}, "/dev/shm", "fail"),
    ("limits", LIMITS, {}, "open files", "pass"), ("limits", LIMITS, {"files": -1}, "open files", "pass"),
    ("limits", LIMITS, {"files": 8192}, "open files", "warn"),
    ("limits", LIMITS, {"files": 1024}, "open files", "fail"),
    ("limits", LIMITS, {"locked": 65536, "infiniband": ["mlx5_0"]}, "locked memory", "warn"),
    ("proxies", {"names": []}, {}, "proxies", "pass"), ("proxies", {"names": ["https_proxy"]}, {}, "proxies", "warn"),
    ("network", NETWORK, {}, "ports", "pass"), ("network", NETWORK, {"bound": 0, "error": "no lo"}, "ports", "fail"),
    ("network", NETWORK, {"resolves": []}, "host name", "warn")]


def judged(probe: str, facts: dict[str, Any]) -> dict[str, Check]:
    return {check.name: check for check in JUDGES[probe](facts)}


@pytest.mark.parametrize(("probe", "facts", "changes", "name", "status"), CASES)
def test_case(probe: str, facts: dict[str, Any], changes: dict[str, Any], name: str, status: str) -> None:
    assert judged(probe, facts | changes)[name].status == status


def test_every_probe_is_judged() -> None:
    assert JUDGES.keys() == PROBES.keys() == {probe for probe, *_ in CASES}


def test_locked_memory_matters_only_to_infiniband() -> None:
    assert "locked memory" not in judged("limits", LIMITS | {"locked": 65536})
