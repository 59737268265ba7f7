"""File-descriptor limits, in a process of its own."""

from __future__ import annotations

import subprocess
import sys

import pytest

from siri_megatron.rollout.descriptors import RESERVED, WANTED, connections_for

CODE = """
import resource
resource.setrlimit(resource.RLIMIT_NOFILE, ({soft}, {hard}))
from siri_megatron.rollout.descriptors import raise_limit
print(raise_limit(), *resource.getrlimit(resource.RLIMIT_NOFILE))
"""


@pytest.mark.parametrize(("soft", "hard"), [(64, 1024), (256, 256)])
def test_low_limit_is_raised_or_connections_are_limited(soft: int, hard: int) -> None:
    said = subprocess.run([sys.executable, "-c", CODE.format(soft=soft, hard=hard)], capture_output=True, check=True,
                          text=True, timeout=180).stdout.split()
    assert [int(number) for number in said] == [hard - RESERVED, hard, hard]


def test_connections_for() -> None:
    assert (connections_for(64), connections_for(1024), connections_for(10**6)) == (1, 1024 - RESERVED, WANTED)
