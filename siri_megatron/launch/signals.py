"""Signals as something to look at: SIGINT, SIGTERM and SIGHUP are noted, and end a wait at once."""

from __future__ import annotations

import os
import select
import signal
from types import FrameType

HANDLED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Signals:
    """Context manager; `received` lists the signals in their order. Main thread only (Python's rule)."""

    def __init__(self) -> None:
        self.received: list[signal.Signals] = []
        self._before = {number: signal.getsignal(number) for number in HANDLED}

    def __enter__(self) -> Signals:
        self._read, self._write = os.pipe()
        for end in (self._read, self._write):
            os.set_blocking(end, False)
        for number in HANDLED:
            signal.signal(number, self._note)
        return self

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.received.append(signal.Signals(number))
        os.write(self._write, b"!")

    def wait(self, seconds: float) -> None:
        """Sleep, or less if a signal arrives."""
        ready, _, _ = select.select([self._read], [], [], seconds)
        if ready:
            os.read(self._read, 64)

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        os.close(self._read)
        os.close(self._write)
