"""What is kept of a run's surroundings."""

from __future__ import annotations

import json
import platform
from importlib import metadata

from siri_megatron.observe.environment import environment


def test_versions_and_machine():
    found = json.loads(json.dumps(environment()))
    assert found["python"] == platform.python_version()
    assert found["packages"]["numpy"] == metadata.version("numpy")
    assert "transformer-engine" not in found["packages"]  # not installed here: left out, no error
    assert found["cores"] >= 1
    assert found["memory_gib"] > 0
