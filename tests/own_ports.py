"""Ports of one of pytest's workers. Not a test."""

from __future__ import annotations

import os
import re
from itertools import count

from siri_megatron.errors import ConfigError
from siri_megatron.launch.ports import PortHolder

WORKER = int(re.sub(r"\D", "", os.environ.get("PYTEST_XDIST_WORKER", "")) or 0)
_following = count(20000 + 2000 * WORKER)


def own_ports(number: int) -> list[int]:
    """So many free ports in a row. They lie below those that the kernel hands out (32768 and more), and each worker has
    its own, so that no test beside gets one between here and its use."""
    while True:
        wanted = [next(_following) for _ in range(number)]
        try:
            with PortHolder("127.0.0.1", wanted[0], number) as held:
                return held.ports
        except ConfigError:
            continue
