"""Resolve the extra `gpu` for Python 3.12 on Linux x86_64 and write requirements/gpu.lock. Nothing is installed.

    pip install uv && python tools/gpu_lock.py

pip itself resolves markers for the Python that runs it, so this asks uv, which resolves for another one. The lock holds
exact versions, every dependency included; docs/cluster.md and slurm/container/Dockerfile say how it is installed.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path

from siri_megatron.errors import ConfigError, SiriError
from siri_megatron.files import write_text

ROOT = Path(__file__).resolve().parents[1]
LOCK, PROJECT = ROOT / "requirements" / "gpu.lock", ROOT / "pyproject.toml"
PYTHON, PLATFORM = "3.12", "x86_64-manylinux_2_28"
TIMEOUT_S = 600
PIN = re.compile(r"[A-Za-z0-9][\w.-]*==[\w.!+]+")
HEADER = f"""\
# The extra `gpu` with all it needs, for Python {PYTHON} on Linux x86_64, by tools/gpu_lock.py: a resolver's answer,
# neither installed nor run where it was made, for want of a GPU. Install it with --no-deps, transformer-engine-torch
# last and with --no-build-isolation (docs/cluster.md): it is source only, and else built against another torch.
"""


def main() -> int:
    lines = checked(resolved())
    write_text(LOCK, HEADER + "\n".join(lines) + "\n")
    print(f"{LOCK.relative_to(ROOT)}: {len(lines)} packages")
    return 0


def resolved() -> str:
    """uv's answer.

    Raises:
        ConfigError: uv is not there, or finds no set of versions.
    """
    uv = shutil.which("uv") or shutil.which("uv", path=str(Path(sys.executable).parent))
    if uv is None:
        raise ConfigError("there is no uv here", rule="uv resolves for another Python",
                          fix="pip install uv")
    with tempfile.TemporaryDirectory() as place:
        (Path(place) / "lock").write_text(LOCK.read_text() if LOCK.exists() else "")  # pins that still fit are kept
        command = (uv, "pip", "compile", "-q", "--no-config", "--python-version", PYTHON, "--python-platform", PLATFORM,
                   "--no-annotate", "--no-header", "--no-emit-index-url", "--extra", "gpu",
                   "-o", f"{place}/lock", str(PROJECT))
        done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S, check=False)
        if done.returncode:
            raise ConfigError(f"uv finds no set of versions:\n{done.stderr[-2000:]}",
                              rule="the pins of the extra gpu have one", fix="change them in pyproject.toml")
        return (Path(place) / "lock").read_text()


def checked(text: str) -> list[str]:
    """The pins of a resolver's answer, in order.

    Raises:
        ConfigError: a line is something else (an address, say), or a pin of pyproject.toml is missing.
    """
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    if other := [line for line in lines if not PIN.fullmatch(line)]:
        raise ConfigError(f"the lock has the line {other[0]!r}", rule="name==version, and not where it is from",
                          fix="look at the options of uv, and at its environment variables")
    if missing := sorted(wanted() - set(lines)):
        raise ConfigError(f"the lock lacks {missing[0]}", rule="it holds the pins of the extra gpu",
                          fix="run tools/gpu_lock.py")
    return lines


def wanted() -> set[str]:
    """The pins of the extra, without their own extras."""
    pins = tomllib.loads(PROJECT.read_text())["project"]["optional-dependencies"]["gpu"]
    return {re.sub(r"\[.*?\]", "", pin) for pin in pins}


if __name__ == "__main__":
    try:
        sys.exit(main())
    except SiriError as error:
        sys.exit(str(error))
