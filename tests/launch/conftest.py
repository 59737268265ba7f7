from __future__ import annotations

from collections.abc import Iterator

import pytest
from launch_processes import Marked


@pytest.fixture
def marked() -> Iterator[Marked]:
    """Processes of this test; whatever is left of them afterwards is killed."""
    processes = Marked()
    yield processes
    processes.kill()
