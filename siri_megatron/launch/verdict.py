"""From exit statuses and last words to the one verdict of a run. Pure.

Invariants:

- first_cause: an engine that died explains a collector that failed, which explains learners that failed; among
  learners one that was killed from outside is the cause, else the earliest last words (the others lost their peers).
- meaningful_lines: of a log, the lines that say what went wrong, never a wall of frames.
- three_codes: the exit code of `siri` is 0, 3 or 130 for success, failed, interrupted.
"""

from __future__ import annotations

import re
import signal
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from siri_megatron.launch.pulse import BEGIN
from siri_megatron.launch.spec import Kind

Status = Literal["success", "failed", "interrupted"]
EXIT_CODES: dict[Status, int] = {"success": 0, "failed": 3, "interrupted": 130}
CAUSE_ORDER: dict[Kind, int] = {"engine": 0, "service": 1, "main": 2}
TERMINATED = 128 + signal.SIGTERM
TRY_AGAIN = 75
"""Exit status (EX_TEMPFAIL) where the cause was a node, not the run: on other nodes it would have gone on."""
LITTLE_ROOM = 1 << 16
"""Bytes: with less, a disk is full."""
NODE_LOST = 1000
"""Stands for the exit status of a process whose node is lost: nobody knows the real one."""
# No process does these to itself because a peer is gone (SIGABRT it may: an uncaught exception in a C++ thread).
FROM_OUTSIDE = (signal.SIGKILL, signal.SIGSEGV, signal.SIGBUS, signal.SIGILL)

# `(APIServer pid=12) ERROR 08-01 12:00:00 [core.py:1] ` and the like in front of a log line
PREFIX = re.compile(r"^(\([^)]*pid=\d+\)\s*)?((ERROR|WARNING|INFO|CRITICAL)\s+[\d-]+\s+[\d:.,]+\s+(\[[^\]]*\]\s*)?)?")
ERROR_LINE = re.compile(r"^([A-Za-z_][\w.]*(Error|Exception|Failed|Interrupt|Exit)\b.*|guard: .*|Killed|.*: error: .*|"
                        r".*No module named .*)$")
GENERIC = ("Engine core initialization failed", "EngineDeadError", "See root cause above", "SystemExit")


@dataclass(frozen=True)
class Failure:
    """One process that ended as it should not have."""

    role: str
    kind: Kind
    what: str
    rule: str = ""
    fix: str = ""
    time: float = 0.0
    log: str = ""
    code: int | None = None

    def to_json(self) -> dict[str, Any]:
        return {"role": self.role, "what": self.what, "rule": self.rule, "fix": self.fix, "log": self.log,
                "exit_status": None if self.code == NODE_LOST else self.code}


@dataclass(frozen=True)
class Verdict:
    """How a run ended. `step` counts finished steps, `committed` is the step a resume starts from."""

    status: Status
    reason: str
    failures: tuple[Failure, ...] = ()
    step: int = 0
    committed: int | None = None
    extra: Mapping[str, Any] = field(default_factory=dict)

    @property
    def exit_code(self) -> int:
        lost = bool(self.failures) and self.failures[0].code == NODE_LOST
        return TRY_AGAIN if lost else EXIT_CODES[self.status]

    def to_json(self) -> dict[str, Any]:
        return {"status": self.status, "step": self.step, "committed": self.committed, "reason": self.reason,
                "exit_code": self.exit_code, **self.extra, "failures": [failure.to_json() for failure in self.failures]}


def signal_of(code: int) -> int:
    """Number of the signal that ended a process (its guard, if negative); not positive if none did."""
    return code - 128 if code > 128 else -code


def explain_exit(code: int) -> str:
    """`ended with status 3`, `was killed by SIGKILL (out of memory?)`, ..."""
    number = signal_of(code)
    if code == NODE_LOST:
        return "was lost with its node"
    if code == 0:
        return "ended before the run did"
    if number in {int(known) for known in signal.Signals} and (code < 0 or code > 128):
        hint = " (out of memory, or by hand)" if number == signal.SIGKILL else ""
        who = "its guard was killed" if code < 0 else "was killed"
        return f"{who} by {signal.Signals(number).name}{hint}"
    return f"ended with status {code}"


def failure(role: str, kind: Kind, code: int, words: Mapping[str, Any] | None, log_text: str, log: str) -> Failure:
    """What is known about a process that ended: its last words, else the telling lines of its log."""
    if words:
        return Failure(role, kind, str(words["what"]), str(words.get("rule", "")), str(words.get("fix", "")),
                       float(words.get("time", 0.0)), log, code)
    lines = meaningful_lines(log_text)
    said = "".join(f"\n    {line}" for line in lines)
    return Failure(role, kind, f"{explain_exit(code)}{'; its log ends:' if said else ''}{said}", fix=f"read {log}",
                   time=0.0 if signal_of(code) in FROM_OUTSIDE or code == NODE_LOST else float("inf"), log=log,
                   code=code)


def on_a_full_disk(place: str, free: int) -> dict[str, str] | None:
    """The words of a process that could write none, nor a log, for want of room."""
    if free >= LITTLE_ROOM:
        return None
    return {"what": f"ended without a word: {place} has {free:,} bytes free", "rule": "a run writes into its directory",
            "fix": "make room, then resume"}


def hanging(role: str, kind: Kind, seconds: float, limit_s: float, log: str) -> Failure:
    """A process that exists and does nothing: whatever its peers say of it, they failed because of it."""
    return Failure(role, kind, f"hangs: nothing of it has run for {seconds:.0f} s",
                   rule=f"a process shows that it lives within learner.heartbeat_timeout_s={limit_s:g} s, "
                        f"and within {BEGIN:g} times that at its start",
                   fix=f"see whether it was stopped or the machine swaps; read {log}", log=log)


def root_cause(failures: Sequence[Failure]) -> tuple[Failure, ...]:
    """The failures, the one that explains the others first."""
    return tuple(sorted(failures, key=lambda failure: (CAUSE_ORDER[failure.kind], failure.time)))


def meaningful_lines(text: str, limit: int = 4) -> list[str]:
    """The last lines that name an error (without prefixes and repetitions); failing these, the last lines at all."""
    lines = [PREFIX.sub("", line.rstrip()) for line in text.splitlines()]
    lines = [line for line in lines if line.strip() and not set(line.strip()) <= set("^~ ")]
    errors = [line for line in lines if ERROR_LINE.match(line)]
    telling = [line for line in errors if not any(word in line for word in GENERIC)] or errors
    chosen = list(dict.fromkeys(telling or lines))[-limit:]
    return [line[:300] for line in chosen]
