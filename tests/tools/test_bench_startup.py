"""The start-up benchmark runs from end to end on the real head, agents and sender. No assertion on time."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

BENCH = Path(__file__).resolve().parents[2] / "tools" / "bench"


def test_two_counts_of_nodes() -> None:
    done = subprocess.run([sys.executable, str(BENCH / "startup.py"), "1", "3"], capture_output=True, text=True,
                          timeout=300)
    assert done.returncode == 0, done.stderr
    head, *rows = [line.split() for line in done.stdout.splitlines()]
    assert head[0] == "nodes"
    assert [row[0] for row in rows] == ["1", "3"]
    assert [len(row) for row in rows] == [13, 13], "four figures of seconds and of the head's milliseconds"
