"""Small files of a run directory, written so that a reader sees all of one or nothing."""

from __future__ import annotations

import json
import os
import secrets
from pathlib import Path
from typing import Any


def write_json(path: Path, value: Any) -> None:
    """Write atomically: to a temporary file beside it, then rename."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    part.write_text(json.dumps(value, indent=1) + "\n")
    os.replace(part, path)


def read_json(path: Path) -> dict[str, Any] | None:
    """The mapping in `path`; None if the file is missing or torn."""
    try:
        value = json.loads(path.read_text())
    except (FileNotFoundError, json.JSONDecodeError):
        return None
    return value if isinstance(value, dict) else None


def make_key(path: Path) -> str:
    """The run's secret: a new one at every start, mode 0600 from the first byte on."""
    key = secrets.token_hex(32)
    path.unlink(missing_ok=True)
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w") as file:
        file.write(key)
    return key
