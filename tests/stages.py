"""Which stage a real run is in, as its own processes announce it (tests/announcer), to within a millisecond.

The product has no such reports: they are put in from outside, by a `sitecustomize` on PYTHONPATH.
"""

from __future__ import annotations

import os
import select
import time
from collections import defaultdict
from collections.abc import Callable, Mapping
from pathlib import Path
from statistics import mean

ANNOUNCER = Path(__file__).resolve().parent / "announcer"
PIPE, NO_REPORT = "SIRI_TEST_STAGES", "SIRI_TEST_NO_REPORT"
LOADING, BETWEEN = "loading", "between"
STAGES = ("generation", "verification", "planning", "training", "push", "save", "commit", "export", "evaluation")


class Stages:
    """The reading end. `env` is for the run's processes; call `restart` before each attempt at the run.

    report: the run draws its report at each end.
    """

    def __init__(self, place: Path, *, report: bool = True) -> None:
        self._report = report
        self._path = place / "stages"
        os.mkfifo(self._path)
        self._pipe = os.open(self._path, os.O_RDWR | os.O_NONBLOCK)  # for writing too: there is always a reader
        self._rest = b""
        self._took: dict[str, list[float]] = defaultdict(list)
        self.restart()

    def env(self, base: Mapping[str, str]) -> dict[str, str]:
        path = [str(ANNOUNCER), *filter(None, [base.get("PYTHONPATH")])]
        quiet = {} if self._report else {NO_REPORT: "1"}
        return dict(base) | {"PYTHONPATH": os.pathsep.join(path), PIPE: str(self._path)} | quiet

    def restart(self) -> None:
        """Another attempt begins: nothing that was announced so far counts."""
        self.read(0)
        self._open: list[tuple[str, float]] = []
        self._any, self._began = False, time.monotonic()

    @property
    def now(self) -> str:
        """The stage: the innermost one that was entered and not left."""
        names = [name for name, _ in self._open]
        if not self._any:
            return LOADING
        inner = [name for name in names if name != "verification"]
        if names and (not inner or inner[-1] == "generation"):
            return "verification" if "verification" in names else inner[-1]
        return inner[-1] if inner else BETWEEN

    def seconds(self, stage: str) -> float:
        """How long it took on average, so far."""
        return mean(self._took[stage]) if self._took[stage] else 0.0

    def read(self, timeout_s: float) -> list[str]:
        """Take in what was announced, waiting for it so long; returns the stages entered.

        The verification of an evaluation's answers is a part of the evaluation.
        """
        if not select.select([self._pipe], [], [], timeout_s)[0]:
            return []
        *lines, self._rest = (self._rest + os.read(self._pipe, 2**16)).split(b"\n")
        return [name for line in lines if (name := self._heard(line.decode()))]

    def wait_for(self, stage: str, over: Callable[[], bool], timeout_s: float) -> bool:
        """Wait until a stage is entered; False if `over` comes first.

        Raises:
            TimeoutError: neither came.
        """
        end = time.monotonic() + timeout_s
        while not over():
            if stage in self.read(0.2):
                return True
            if time.monotonic() > end:
                raise TimeoutError(f"waited {timeout_s} s for {stage}; it is {self.now}")
        return False

    def close(self) -> None:
        os.close(self._pipe)
        self._path.unlink()  # the next one may want the same place

    def _heard(self, line: str) -> str:
        """Note a line; returns the stage if it was entered."""
        _, at, what = line.split()
        name = what[1:]
        if what[0] == "+":
            if not self._any:
                self._took[LOADING].append(float(at) - self._began)
            self._any = True
            of_evaluation = name == "verification" and any(open_name == "evaluation" for open_name, _ in self._open)
            self._open.append((name, float(at)))
            return "" if of_evaluation else name
        index = max((i for i, (open_name, _) in enumerate(self._open) if open_name == name), default=-1)
        if index >= 0:
            self._took[name].append(float(at) - self._open.pop(index)[1])
        return ""
