"""Where vLLM makes its Unix sockets: a directory of each guarded process, which goes with it.

Left to itself vLLM makes them in the machine's temporary directory, and an engine that is
ended by a signal leaves them there. Standard library only, and little of it: the guard imports this.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

VARIABLE = "VLLM_RPC_BASE_PATH"
DEFAULT, LONGEST = "/tmp", 107
NAME = len("/siri-0123456789abcdef-4194304/") + len("00000000-0000-0000-0000-000000000000")


def make_place(tag: str, pid: int) -> Path:
    """A new directory for the sockets of what process `pid` starts."""
    place = base() / f"siri-{tag}-{pid}"
    place.mkdir(mode=0o700)
    return place


def remove_places(tag: str, pid: int | str = "*") -> None:
    """Of one process, or of all of a launch on this machine; nobody of it lives any more."""
    for place in base().glob(f"siri-{tag}-{pid}"):
        with contextlib.suppress(FileNotFoundError):  # another guard of the launch removes it as well
            for socket in place.iterdir():
                socket.unlink(missing_ok=True)
            place.rmdir()


def base() -> Path:
    """$TMPDIR, if it is a directory that leaves room for a name: the kernel takes 107 bytes of a socket's path."""
    given = os.environ.get("TMPDIR", DEFAULT)
    return Path(given if os.path.isdir(given) and len(os.fsencode(given)) + NAME <= LONGEST else DEFAULT)
