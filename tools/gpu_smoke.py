"""Tries on a machine with GPUs what could not be run where this was written: `python tools/gpu_smoke.py`.

    a ledger with transformers' log-probs ─► replays of it in every layout ─► resume, conversion, memory
    engines alone ─► whole runs: push over nccl, over shared memory, engines of two GPUs

Each check is one of the product's own commands in a process of its own, under a time limit; what it wrote is then
looked at (`gpu_checks.py` lists them). Two GPUs are enough for all of them. A line a check: pass, fail or skip,
seconds, what was found. Logs and runs lie in --dir.

Exit status: 0 if every check passed, 1 if one failed, 77 if none failed and some were skipped (too few GPUs, or what
they need was not there). --rehearse runs the same commands on the CPU, in float32 and over gloo: it tries the commands,
and says nothing of a GPU.
"""

from __future__ import annotations

import argparse
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from gpu_checks import REPO, Check, Measured, Setting, Wrong, checks, used_bytes

from siri_megatron.launch.gpus import visible_gpus

POLL_S = 0.5
END_S = 30.0
SKIPPED = 77
"""Exit status for "not tried", as automake's test drivers have it."""
Status = Literal["pass", "fail", "skip"]


@dataclass(frozen=True)
class Verdict:
    name: str
    status: Status
    seconds: float
    found: str

    def line(self, wide: int) -> str:
        return f"{self.status}  {self.name:{wide}}  {self.seconds:6.0f} s  {self.found}"


def run_all(listed: Sequence[Check], setting: Setting, only: Sequence[str] = ()) -> list[Verdict]:
    """Every check in its order; of `only` and what they need, if it is given. Prints each line as it comes."""
    wanted = needed(listed, only) if only else {check.name for check in listed}
    wide, done = max(len(check.name) for check in listed), dict[str, Verdict]()
    for check in (check for check in listed if check.name in wanted):
        done[check.name] = verdict = judged(check, setting, done)
        print(verdict.line(wide), flush=True)
    return list(done.values())


def needed(listed: Sequence[Check], only: Sequence[str]) -> set[str]:
    """These checks and those whose results they use."""
    after, wanted, waiting = {check.name: check.after for check in listed}, set[str](), list(only)
    while waiting:
        name = waiting.pop()
        if name not in wanted:
            wanted.add(name)
            waiting += after[name]
    return wanted


def judged(check: Check, setting: Setting, done: dict[str, Verdict]) -> Verdict:
    """Run one check, unless something that it needs is not there."""
    if setting.gpus < check.gpus and not (setting.rehearsal and check.rehearsed):
        there = "a rehearsal has none" if setting.rehearsal else f"this machine has {setting.gpus}"
        return Verdict(check.name, "skip", 0.0, f"needs {check.gpus} GPU{'s' if check.gpus > 1 else ''}, {there}")
    if missing := [name for name in check.after if done[name].status != "pass"]:
        return Verdict(check.name, "skip", 0.0, f"needs {missing[0]}, which did not pass")
    began, log = time.monotonic(), setting.place / f"{check.name.replace(' ', '-')}.log"
    try:
        check.prepare()
        peak = run(check.command, log, check.limit_s, setting)
        return Verdict(check.name, "pass", time.monotonic() - began, check.judge(Measured(log, peak)))
    except Wrong as wrong:
        return Verdict(check.name, "fail", time.monotonic() - began, f"{wrong} ({log})")


def run(command: Sequence[str], log: Path, limit_s: float, setting: Setting) -> int:
    """A command to its end; returns what the first GPU held at most meanwhile, bytes.

    Raises:
        Wrong: it failed, or took too long; with the last that it said.
    """
    with log.open("wb") as file:
        process = subprocess.Popen(command, cwd=REPO, env=environment(setting), stdin=subprocess.DEVNULL, stdout=file,
                                   stderr=subprocess.STDOUT, start_new_session=True)
    deadline, peak = time.monotonic() + limit_s, 0
    try:
        while process.poll() is None:
            if time.monotonic() > deadline:
                raise Wrong(f"no end within {limit_s:g} s; last it said {last_words(log)}")
            peak = max(peak, used_bytes() if setting.gpus else 0)
            time.sleep(POLL_S)
    finally:
        end(process)
    if process.returncode:
        raise Wrong(f"ended with {process.returncode}: {last_words(log)}")
    return peak


def environment(setting: Setting) -> dict[str, str]:
    """A rehearsal sees no GPU. Transformer Engine says which attention it takes."""
    path = os.pathsep.join([str(REPO), *filter(None, [os.environ.get("PYTHONPATH")])])
    return os.environ | {"PYTHONPATH": path, "NVTE_DEBUG": "1", "NVTE_DEBUG_LEVEL": "2"} | (
        {"CUDA_VISIBLE_DEVICES": ""} if setting.rehearsal else {})


def end(process: subprocess.Popen[bytes]) -> None:
    """Whatever a command has started ends with it: a supervisor's guards see to that."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        if process.poll() is None:
            os.killpg(process.pid, number)
            try:
                process.wait(END_S)
            except subprocess.TimeoutExpired:
                continue


def last_words(log: Path) -> str:
    """What `siri`, its doctor or the verdict of a run says is wrong; else the last line."""
    lines = [line.strip() for line in log.read_text(errors="replace").splitlines() if line.strip()]
    wrong = [line for before, line in zip(["", *lines], lines, strict=False)
             if line.startswith(("siri:", "fail ")) or re.match(r"\S+ failed after \d+ of \d+ steps", before)]
    return (wrong or lines or ["nothing"])[-1][:300]


def exit_status(verdicts: Sequence[Verdict]) -> int:
    found = {verdict.status for verdict in verdicts}
    return 1 if "fail" in found else SKIPPED if "skip" in found else 0


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dir", type=Path, help="where runs and logs go (a new directory); 5 GB")
    parser.add_argument("--only", action="append", default=[], metavar="NAME", help="this check, and what it needs")
    parser.add_argument("--list", action="store_true", help="print the checks and their commands; run nothing")
    parser.add_argument("--rehearse", action="store_true", help="the same commands on the CPU")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    options = parse(argv)
    place = (options.dir or Path(tempfile.gettempdir()) / f"siri-gpu-smoke-{os.getpid()}").absolute()
    setting = Setting(place, 0 if options.rehearse else len(visible_gpus()), options.rehearse)
    listed = checks(setting)
    if unknown := set(options.only) - {check.name for check in listed}:
        sys.exit(f"no check {', '.join(sorted(unknown))}; there are: {', '.join(check.name for check in listed)}")
    if options.list:
        for check in listed:
            print(f"{check.name} ({check.gpus} GPUs, at most {check.limit_s:g} s): {' '.join(check.command)}")
        return 0
    place.mkdir(parents=True, exist_ok=True)
    verdicts = run_all(listed, setting, options.only)
    count = {status: sum(verdict.status == status for verdict in verdicts) for status in ("pass", "fail", "skip")}
    print(", ".join(f"{number} {status}" for status, number in count.items()) + f"; runs and logs in {place}")
    return exit_status(verdicts)


if __name__ == "__main__":
    sys.exit(main())
