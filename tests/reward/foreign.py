"""Functions that run in workers, as users and hostile texts would have them. Named in the tests by import path."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
import time


def half(prompt: str, reference: str, response: str) -> float:
    """1 for the reference, a half where it stands within the response."""
    return 1.0 if response == reference else 0.5 if reference in response else 0.0


def says(prompt: str, reference: str, response: str) -> object:
    """What the response asks for."""
    return {"true": True, "none": None, "one": 1, "prompt": prompt == "?",
            "two": 2.0, "text": "0.5", "nan": float("nan"), "list": [1.0]}[response]


def acts(prompt: str, reference: str, response: str) -> float:
    """Does what the response says, if it is something bad; else 1."""
    if response == "hang":
        time.sleep(3600)
    elif response == "hang in C":
        ctypes.PyDLL(None).usleep(3_600_000_000)  # holds the interpreter's lock: no Python signal handler runs
    elif response == "memory":
        return float(len(bytearray(1 << 40)))
    elif response == "exit":
        sys.exit(0)
    elif response == "die":
        os._exit(3)
    elif response == "crash":
        ctypes.string_at(0)
    elif response == "unpicklable":
        raise TwoArguments(1, 2)
    elif response == "recurse":
        return acts(prompt, reference, response)
    elif response == "program":
        subprocess.run(["sleep", reference])
    elif response == "left behind":
        subprocess.Popen(["sleep", reference])
        os._exit(3)
    elif response == "pid":
        return 1 / os.getpid()
    return 1.0


class TwoArguments(Exception):
    """Cannot be unpickled: the pool's receiving thread would fail on it."""

    def __init__(self, one: int, two: int) -> None:
        super().__init__("two")


async def asynchronous(prompt: str, reference: str, response: str) -> float:
    return 1.0


def two_arguments(prompt: str, response: str) -> float:
    return 1.0


not_callable = 7
