"""Asking a run to stop: a flag file that learner rank 0 looks at between two steps.

A file, not a signal: Python's signal handlers do not run while a rank sits in a collective, the file can be set from
another node, and it says who asked. The run's next start removes it.
"""

from __future__ import annotations

import threading
import time

from siri_megatron.files import write_json
from siri_megatron.paths import RunDir


def request_stop(run_dir: RunDir, reason: str) -> None:
    """Ask the learners to commit at the next step boundary and to end with status 0."""
    write_json(run_dir.stop, {"reason": reason, "time": time.time()})


def stop_requested(run_dir: RunDir) -> bool:
    return run_dir.stop.exists()


def clear_stop(run_dir: RunDir) -> None:
    run_dir.stop.unlink(missing_ok=True)


def clear_notice(run_dir: RunDir) -> None:
    """Forget the notice that an earlier job was given. As soon as the run directory is locked, not when its processes
    start: while further nodes are waited for, this job may be given one of its own."""
    run_dir.interrupt.unlink(missing_ok=True)


def watch_stop(run_dir: RunDir, poll_s: float = 0.2) -> threading.Event:
    """An event that is set once a stop is asked for (watched by a daemon thread)."""
    event = threading.Event()

    def watch() -> None:
        while not stop_requested(run_dir):
            time.sleep(poll_s)
        event.set()

    threading.Thread(target=watch, name="watch-stop", daemon=True).start()
    return event
