"""The run's secret, which every HTTP route of engines and collector asks for."""

from __future__ import annotations

import os
import secrets
from pathlib import Path


def make_key(path: Path, source: Path | None = None) -> str:
    """Write a new key, or the one of another file; mode 0600 from the first byte on."""
    key = source.read_text().strip() if source else secrets.token_hex(32)
    path.unlink(missing_ok=True)
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w") as file:
        file.write(key)
    return key
