from __future__ import annotations

from collections.abc import Iterator

import pytest
from launch_processes import Marked

from siri_megatron.launch.sockets import remove_sockets


@pytest.fixture
def marked() -> Iterator[Marked]:
    """Processes of this test; whatever is left of them afterwards is killed."""
    processes = Marked()
    yield processes
    processes.kill()
    remove_sockets(processes.value)  # of guards that the test has killed
