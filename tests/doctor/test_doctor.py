"""`siri doctor` on this machine, on one without packages, and on machines whose tools and imports are played."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import venv
from pathlib import Path
from typing import Any

import pytest

from siri_megatron.doctor import command, shared_files
from siri_megatron.doctor.check import Check
from siri_megatron.doctor.command import checked

ROOT = Path(__file__).resolve().parents[2]
SCONTROL = """#!/bin/sh
case "$*" in
  --version) echo slurm 22.05.8 ;;
  "show config") echo "JobRequeue              = 1" ;;
  "show job 7") echo "JobId=7 JobName=a"; echo "   Requeue=0 Restarts=0 BatchFlag=1" ;;
  "show hostnames") echo n1; echo n2 ;;
esac
"""
SRUN = """#!/bin/sh
while [ "${1#-}" != "$1" ]; do if [ "$1" = -w ]; then shift; fi; shift; done
SLURMD_NODENAME=n1 "$@" && if [ "$4" = clock ]; then SLURMD_NODENAME=n2 "$@"; fi
"""
SMI = "#!/bin/sh\necho 'NVIDIA H100 80GB HBM3, 580.65.06, 81559, Default'\n"


def by_name(checks: list[Check]) -> dict[str, Check]:
    return {check.name: check for check in checks}


@pytest.fixture
def tools(tmp_path: Path) -> dict[str, str]:
    """An environment with a cluster's commands."""
    for name, text in {"scontrol": SCONTROL, "srun": SRUN, "nvidia-smi": SMI}.items():
        (tmp_path / "bin" / name).parent.mkdir(exist_ok=True)
        (tmp_path / "bin" / name).write_text(text)
        (tmp_path / "bin" / name).chmod(0o755)
    return os.environ | {"PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}"}


def module(tmp_path: Path, name: str, text: str) -> dict[str, str]:
    """An environment in which a package is another one."""
    (tmp_path / "played" / name).mkdir(parents=True)
    (tmp_path / "played" / name / "__init__.py").write_text(text)
    return os.environ | {"PYTHONPATH": str(tmp_path / "played")}


def test_this_machine(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-m", "siri_megatron.cli", "doctor", "--json", "--dir", str(tmp_path)],
                          capture_output=True, text=True, timeout=500, check=False,
                          env=os.environ | {"PYTHONPATH": str(ROOT)})
    told = json.loads(done.stdout)
    checks = {check["name"]: check["status"] for check in told["checks"]}
    assert done.returncode == int("fail" in checks.values())
    for name in ("python", "torch", "vllm", "torch import", "megatron-core import", "vllm routes and flags",
                 "shared files", "clock against files", "ports"):
        assert checks[name] == "pass", (name, told)
    assert list(tmp_path.iterdir()) == []


def test_without_any_package(tmp_path: Path) -> None:
    """A login node with nothing but Python: what is not there is skipped, the rest is looked at."""
    venv.create(tmp_path / "bare", with_pip=False, symlinks=True)
    done = subprocess.run([str(tmp_path / "bare" / "bin" / "python"), "-m", "siri_megatron.cli", "doctor", "--json",
                           "--dir", str(tmp_path / "runs")], capture_output=True, text=True, timeout=500, check=False,
                          env={"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT)})
    checks = {check["name"]: check["status"] for check in json.loads(done.stdout)["checks"]}
    for name in ("torch", "vllm", "megatron-core", "torch import", "megatron-core import", "vllm routes and flags"):
        assert checks[name] == "skip", (name, done.stdout)
    assert (checks["python"], checks["shared files"]) == ("pass", "pass")


@pytest.mark.parametrize(("text", "said"), [
    ("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)", "was killed by signal 11"),
    ("raise ImportError('libcudnn.so.9: cannot open shared object file')", "libcudnn.so.9: cannot open"),
    ("import time; time.sleep(60)", "no answer within 2 s")])
def test_an_import_that_breaks_or_hangs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, said: str) -> None:
    monkeypatch.setitem(command.LIMITS_S, "torch", 2.0)
    [check] = checked("torch", tmp_path, module(tmp_path, "torch", text))
    assert (check.status, said in check.found) == ("fail", True), check


def test_another_vllm(tmp_path: Path) -> None:
    """One whose sources lack what is used."""
    environment = module(tmp_path, "vllm", "")
    (tmp_path / "played" / "vllm" / "engine").mkdir()
    (tmp_path / "played" / "vllm" / "engine" / "arg_utils.py").write_text("class EngineArgs:\n    model: str\n")
    [check] = checked("vllm", tmp_path, environment)
    assert check.status == "fail"
    assert "/update_weights" in check.found
    assert "--logprobs-mode" in check.found
    assert "--model" not in check.found.split(", ")


def test_a_cluster(tmp_path: Path, tools: dict[str, str]) -> None:
    [card] = checked("gpu", tmp_path, tools)
    assert card.found == "1 x NVIDIA H100 80GB HBM3, 80 GiB, driver 580.65.06"
    slurm = by_name(checked("slurm", tmp_path, tools))
    assert (slurm["slurm"].found, slurm["requeue"].status) == ("slurm 22.05.8", "pass")
    job = tools | {"SLURM_JOB_ID": "7", "SLURM_JOB_NODELIST": "n[1-2]", "SLURM_JOB_NUM_NODES": "2",
                   "SLURMD_NODENAME": "n1"}
    slurm = by_name(checked("slurm", tmp_path, job))
    assert slurm["requeue"].status == "warn"
    assert "--requeue" in slurm["requeue"].fix
    [clocks] = checked("nodes", tmp_path, job)
    assert (clocks.name, clocks.status) == ("clocks of 2 nodes", "pass"), clocks
    files = by_name(checked("shared", tmp_path, job))["shared files"]
    assert (files.status, "node n2" in files.found) == ("pass", True), files


def test_proxies(tmp_path: Path) -> None:
    [check] = checked("proxies", tmp_path, os.environ | {"HTTPS_PROXY": "http://proxy:3128"})
    assert (check.status, check.found) == ("warn", "HTTPS_PROXY set")


# --- files


def test_a_directory_that_cannot_be_written() -> None:
    facts = shared_files.examine(Path("/proc/siri"))
    assert facts["errors"]
    assert "/proc" in facts["errors"][0]


@pytest.mark.parametrize(("name", "replacement", "said"), [
    ("flock", "lambda *_: None", "flock was granted to two processes"),
    ("rename", "lambda *_: None", "was not seen within")])
def test_files_that_do_not_behave(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, replacement: str,
                                  said: str) -> None:
    """Negative control: a file system without locks, and one whose renames stay unseen."""
    played: dict[str, Any] = {"flock": shared_files.fcntl, "rename": shared_files.os}
    monkeypatch.setattr(shared_files, "WAIT_S", 3.0)
    monkeypatch.setattr(played[name], name, eval(replacement))
    facts = shared_files.examine(tmp_path)
    assert any(said in error for error in facts["errors"]), facts


def test_the_file_system_is_the_nearest_mount() -> None:
    assert shared_files.file_system(Path("/dev/shm")) == "tmpfs"
    assert shared_files.file_system(Path("/proc/self")) == "proc"
