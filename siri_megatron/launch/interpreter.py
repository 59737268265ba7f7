"""Which Python a run starts under. Imports nothing of it."""

from __future__ import annotations

import sys
from importlib.util import find_spec
from pathlib import Path

from siri_megatron.config import RunConfig
from siri_megatron.errors import ConfigError
from siri_megatron.launch.spec import PACKAGE_ROOT


def runs_python(config: RunConfig, root: Path = PACKAGE_ROOT) -> str:
    """`launch.python`; else this one, if it has torch; else (a login node) that of the repository's `.venv`.

    Raises:
        ConfigError: there is none of them.
    """
    if config.launch.python:
        return config.launch.python
    if find_spec("torch"):
        return sys.executable
    beside = root / ".venv" / "bin" / "python"
    if not beside.exists():
        raise ConfigError(f"{sys.executable} has no torch, and {beside} does not exist",
                          rule="a run starts under a Python with torch, megatron-core and vLLM",
                          fix="make setup, or launch.python=/path/to/python on the nodes")
    return str(beside)
