"""`siri doctor`: run every probe in a process of its own, judge what they found, print it."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from argparse import Namespace
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from siri_megatron import __version__
from siri_megatron.doctor.check import Check, as_json, as_text, exit_status
from siri_megatron.doctor.judge import JUDGES

ROOT = Path(__file__).resolve().parents[2]
AT_ONCE = 4
LIMIT_S = 90.0
LIMITS_S = {"torch": 180.0, "megatron": 240.0, "transformer_engine": 240.0, "nodes": 90.0}
NEEDS = {"torch": "torch"}
"""probe -> the distribution without which it is skipped."""


def doctor(args: Namespace) -> int:
    """The command; its exit status is 1 if a check failed."""
    checks = examine(args.dir)
    if args.json:
        print(json.dumps(as_json(checks, {"version": __version__, "host": socket.gethostname(), "dir": str(args.dir)}),
                         indent=1))
    else:
        print(as_text(checks))
    return exit_status(checks)


def examine(directory: Path, environment: Mapping[str, str] = os.environ) -> list[Check]:
    """All checks, in the order of `JUDGES`.

    Args:
        directory: on the file system of the runs; it need not exist yet.
    """
    with ThreadPoolExecutor(AT_ONCE) as pool:
        return [check for found in pool.map(lambda name: checked(name, directory, environment), JUDGES)
                for check in found]


def checked(name: str, directory: Path, environment: Mapping[str, str]) -> list[Check]:
    """One probe's checks; one that cannot be run is a check that failed."""
    limit_s = LIMITS_S.get(name, LIMIT_S)
    path = os.pathsep.join([str(ROOT), *filter(None, [environment.get("PYTHONPATH")])])
    command = (sys.executable, "-m", "siri_megatron.doctor.probes", name, str(directory))
    try:
        done = subprocess.run(command, env={**environment, "PYTHONPATH": path}, stdin=subprocess.DEVNULL,
                              capture_output=True, text=True, timeout=limit_s, check=False)
    except subprocess.TimeoutExpired:
        return [Check(name, "fail", f"no answer within {limit_s:g} s",
                      f"it hangs; see where: python {' '.join(command[1:])}")]
    if done.returncode:
        return [_crashed(name, done)]
    facts: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return JUDGES[name](facts)


def _crashed(name: str, done: subprocess.CompletedProcess[str]) -> Check:
    said = next((line.strip() for line in reversed(done.stderr.splitlines()) if line.strip()), "nothing")
    if said.startswith("ModuleNotFoundError: No module named ") and name in NEEDS and repr(NEEDS[name]) in said:
        return Check(f"{name} import", "skip", "not installed here")
    how = f"was killed by signal {-done.returncode}" if done.returncode < 0 else f"ended with {done.returncode}"
    return Check(name, "fail", f"{how}: {said[:300]}",
                 f"mend the installation; the whole story: python -m siri_megatron.doctor.probes {name} .")
