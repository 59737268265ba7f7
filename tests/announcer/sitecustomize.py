"""Python runs this at the start of every process of a run under test: learner rank 0 and the collector then say, on a
named pipe, which stage they enter and leave. `tests/stages.py` puts this directory on PYTHONPATH and reads the pipe.
Where SIRI_TEST_NO_REPORT is set the supervisor draws no report: of a run that is killed and resumed twenty times that
is most of what is not a start.

What is announced is wrapped when its module has been imported; nothing is imported here. Planning and verification of a
tiny run are over before a signal is on its way (in a millisecond): they are drawn out, on either side of what they do.
"""

from __future__ import annotations

import functools
import importlib.abc
import importlib.util
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

PIPE = "SIRI_TEST_STAGES"
DRAWN_OUT_S = 0.025


def say(text: str) -> None:
    try:
        pipe = os.open(os.environ[PIPE], os.O_WRONLY | os.O_NONBLOCK)
    except OSError:  # nobody listens
        return
    os.write(pipe, f"{os.getpid()} {time.monotonic():.6f} {text}\n".encode())
    os.close(pipe)


@contextmanager
def announced(name: str) -> Iterator[None]:
    say(f"+{name}")
    try:
        yield
    finally:
        say(f"-{name}")


def wrap_clock(module: Any) -> None:
    stage = module.StageClock.stage

    @contextmanager
    def announcing(self: Any, name: str) -> Iterator[None]:
        if name == "commit":  # the saver says which part of it
            with stage(self, name):
                yield
        else:
            with announced(name), stage(self, name):
                wait_s = DRAWN_OUT_S * (name == "planning")
                time.sleep(wait_s)
                yield
                time.sleep(wait_s)
    module.StageClock.stage = announcing


def wrap_saver(module: Any) -> None:
    for method, name in (("start", "save"), ("_write_failure", "save"), ("_commit", "commit")):
        setattr(module.Saver, method, wrapped(getattr(module.Saver, method), name))


def wrapped(function: Callable[..., Any], name: str) -> Callable[..., Any]:
    @functools.wraps(function)
    def announcing(*args: Any, **named: Any) -> Any:
        with announced(name):
            return function(*args, **named)
    return announcing


def wrap_scores(module: Any) -> None:
    import asyncio
    score_all = module.score_all

    async def announcing(*args: Any, **named: Any) -> Any:
        with announced("verification"):
            await asyncio.sleep(DRAWN_OUT_S)
            scores = await score_all(*args, **named)
            await asyncio.sleep(DRAWN_OUT_S)
            return scores
    module.score_all = announcing


def no_report(module: Any) -> None:
    module.draw_report = lambda *_: None


class AfterImport(importlib.abc.MetaPathFinder):
    """Wraps what a module holds once it has been executed."""

    def __init__(self, wraps: dict[str, Callable[[Any], None]]) -> None:
        self._wraps = wraps

    def find_spec(self, name: str, path: Any, target: Any = None) -> Any:
        if name not in self._wraps:
            return None
        wrap = self._wraps.pop(name)
        spec = importlib.util.find_spec(name)
        assert spec is not None
        assert spec.loader is not None
        execute = spec.loader.exec_module

        def execute_and_wrap(module: Any) -> None:
            execute(module)
            wrap(module)
        spec.loader.exec_module = execute_and_wrap  # type: ignore[method-assign]
        return spec


COMMAND = " ".join(sys.orig_argv)
if PIPE in os.environ and " siri_megatron.learner.main " in COMMAND and " --rank 0 " in COMMAND:
    sys.meta_path.insert(0, AfterImport({"siri_megatron.observe.stages": wrap_clock,
                                         "siri_megatron.checkpoint.saver": wrap_saver}))
if PIPE in os.environ and " siri_megatron.rollout.service " in COMMAND:
    sys.meta_path.insert(0, AfterImport({"siri_megatron.rollout.collector": wrap_scores}))
if "SIRI_TEST_NO_REPORT" in os.environ and "/siri train " in COMMAND:
    sys.meta_path.insert(0, AfterImport({"siri_megatron.launch.outcome": no_report}))
