"""Which tests go to one of pytest's workers together: what is expensive to start is then started once. Not a test."""

from __future__ import annotations

from functools import cache
from pathlib import Path

from xdist.scheduler.loadscope import LoadScopeScheduling

REPO = Path(__file__).resolve().parents[1]
PLACES = ("tests/e2e/", "tests/slurm/")
"""Their files share whole runs, and a cluster."""
SHARED = "engines: EngineFleet"
"""What a file says that uses the fixture of tests/conftest.py."""


class DealtTogether(LoadScopeScheduling):  # type: ignore[misc]
    """Whole files, as `--dist loadfile` deals them; some files together."""

    def _split_scope(self, nodeid: str) -> str:
        return unit_of(nodeid.partition("::")[0])


@cache
def unit_of(file: str) -> str:
    for place in PLACES:
        if file.startswith(place):
            return place
    return SHARED if SHARED in (REPO / file).read_text() else file
