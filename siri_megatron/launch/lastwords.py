"""Last words of a child process: what it died of, for `result.json` and for the person at the terminal.

`guarded_main` is the outermost frame of every Python child. Exit status: 0 done, 2 refused (ConfigError and the like),
3 failed, 143 ended by SIGTERM (nobody's fault: no last words).
"""

from __future__ import annotations

import logging
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from types import FrameType
from typing import Any, NoReturn

from siri_megatron.errors import RunFailed, SiriError
from siri_megatron.files import TAKES_NO_MORE, disk_failed, write_json
from siri_megatron.launch.pulse import beating
from siri_megatron.paths import RunDir

TERMINATED = 128 + signal.SIGTERM


class Terminated(BaseException):
    """SIGTERM arrived; unwinds the main thread so that `finally` blocks release what they hold."""


def guarded_main(role: str, run_dir: RunDir, fn: Callable[[], int | None]) -> NoReturn:
    """Run `fn` under a pulse and exit with its status; on an error leave failures/<role>.json behind.

    Ends by `os._exit` on failure: a rank whose peers are gone could otherwise hang in its destructors.
    """
    signal.signal(signal.SIGTERM, _terminate)
    try:
        with beating(run_dir, role):
            code = fn() or 0
    except Terminated:
        code = TERMINATED
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    except BaseException as error:  # noqa: BLE001  the outermost frame: whatever it was is written down, then we exit
        code = _record(role, run_dir, error)
    if code == 0:
        sys.exit(0)
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _terminate(number: int, frame: FrameType | None) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # once: a second one must not break off the cleaning up
    raise Terminated


def _record(role: str, run_dir: RunDir, error: BaseException) -> int:
    trace = traceback.format_exc()
    print(trace, file=sys.stderr, flush=True)
    if isinstance(error, OSError) and error.errno in TAKES_NO_MORE:
        error = disk_failed(error, run_dir.root)
    words = describe(error)
    with suppress(OSError):  # the reason may be a full disk: the log has the trace
        write_json(run_dir.failures / f"{role}.json", {"role": role, "time": time.time(), **words, "traceback": trace})
    return error.exit_code if isinstance(error, SiriError) else RunFailed.exit_code


def describe(error: BaseException) -> dict[str, Any]:
    """what, rule and fix of an error; for one that is not ours, its type, message and the place it came from."""
    if isinstance(error, SiriError):
        return {"what": error.what, "rule": error.rule, "fix": error.fix}
    frames = traceback.extract_tb(error.__traceback__)
    place = f" ({os.path.basename(frames[-1].filename)}:{frames[-1].lineno})" if frames else ""
    message = "".join(f": {line}" for line in str(error).strip().splitlines()[:1])
    return {"what": f"{type(error).__name__}{message}{place}", "rule": "", "fix": ""}
