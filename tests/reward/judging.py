"""Verifiers with real workers for the tests: one event loop and one pool of workers for a whole module."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from siri_megatron.config import Scope
from siri_megatron.data.prompts import Prompt
from siri_megatron.launch import procfs
from siri_megatron.reward.math import MathVerifier
from siri_megatron.reward.verifier import Outcome, verify
from siri_megatron.reward.workers import Limits

MEMORY = 2 << 30
PATIENT = Limits(workers=1, timeout_s=60.0, memory_bytes=MEMORY)
"""For judgements that must not fail because the machine is busy."""


class Characters:
    """A codec whose tokens are characters."""

    stop_ids = (0,)

    def decode(self, ids: Sequence[int], skip_special: bool = True) -> str:
        return "".join(map(chr, ids))


def prompt(answer: str, text: str = "?") -> Prompt:
    return Prompt("p", text, (1,), answer)


def ids(text: str) -> list[int]:
    return [ord(character) for character in text]


class Judge:
    """A math verifier and the loop that it runs on."""

    def __init__(self, runner: asyncio.Runner, verifier: MathVerifier) -> None:
        self._runner, self.verifier = runner, verifier

    def outcomes(self, pairs: Sequence[tuple[str, str]]) -> list[Outcome]:
        """Of (reference, response) pairs, judged all at once."""
        async def run() -> list[Outcome]:
            return await asyncio.gather(*(verify(self.verifier, prompt(reference), ids(response))
                                          for reference, response in pairs))

        return self._runner.run(run())


@contextmanager
def judge(scope: Scope = "all", limits: Limits = PATIENT) -> Iterator[Judge]:
    with asyncio.Runner() as runner:
        verifier = MathVerifier(Characters(), scope, limits)  # type: ignore[arg-type]
        try:
            yield Judge(runner, verifier)
        finally:
            runner.run(verifier.close())


def workers_of(pid: int) -> list[int]:
    """Living worker processes below a process (not its resource tracker)."""
    return [child for child in procfs.descendants(pid) if "spawn_main" in command(child)]


def command(pid: int) -> str:
    try:
        with open(f"/proc/{pid}/cmdline", "rb") as file:
            return file.read().replace(b"\0", b" ").decode()
    except (FileNotFoundError, ProcessLookupError):
        return ""


def gone_within(pids: Sequence[int], seconds: float) -> list[int]:
    """The processes of these that still live after at most `seconds`."""
    deadline = time.monotonic() + seconds
    while (left := [pid for pid in pids if pid in procfs.parents()]) and time.monotonic() < deadline:
        time.sleep(0.05)
    return left
