"""A private directory for the sockets of a child: vLLM's processes talk over some, and leave them where they are (by
itself in /tmp) when they are killed.

Standard library only: the guard, which makes the directory and removes it, imports this.

Invariants:

- short: a socket's path has at most 107 bytes (unix(7)), so the directory lies in /tmp, whatever TMPDIR says.
- private: nobody but its owner can enter (mkdtemp(3)).
- found_by_tag: whoever knows the launch tag can remove what a killed guard has left.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from siri_megatron.rollout.vllm_surface import SOCKETS

PLACE = Path("/tmp")


@contextmanager
def private_sockets(tag: str) -> Iterator[dict[str, str]]:
    """The variable that names the directory, which is there meanwhile."""
    with tempfile.TemporaryDirectory(prefix=_prefix(tag), dir=PLACE, ignore_cleanup_errors=True) as place:
        yield {SOCKETS: place}


def remove_sockets(tag: str) -> None:
    """Remove the directories of a launch, none of whose processes live any more."""
    for place in PLACE.glob(f"{_prefix(tag)}*"):
        shutil.rmtree(place, ignore_errors=True)


def _prefix(tag: str) -> str:
    return f"siri-{tag}."
