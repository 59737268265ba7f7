"""A command that is held up: it notices, goes on, and its exit status is the tool's."""

from __future__ import annotations

import sys

from tool_modules import tool

WATCHES = """
import os, signal, subprocess, sys, time
from pathlib import Path
stopped = subprocess.Popen([sys.executable, "-c", "import os, signal; os.kill(os.getpid(), signal.SIGSTOP)"])
state = lambda: Path(f"/proc/{stopped.pid}/stat").read_text().rpartition(")")[2].split()[0]
while state() != "T":
    time.sleep(0.01)
gaps, before = 0, time.monotonic()
while gaps < 3:
    time.sleep(0.01)
    now = time.monotonic()
    gaps, before = gaps + (now - before > 0.1), now
same = state() == "T"
stopped.kill()
sys.exit(7 if same else 8)
"""
"""Ends once it was held up three times, with 7 if what was stopped before has stayed so."""


def test_it_is_held_up_and_goes_on() -> None:
    arguments = ["--every", "0.02", "--longest", "0.3", "--", sys.executable, "-c", WATCHES]
    assert tool("stalls").main(arguments) == 7
