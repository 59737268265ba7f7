"""nemo-run's tunnels, but a job's state comes from Slurm's controller.

nemo-run asks `sacct`. Where accounting is off that fails, and after thirty failures nemo-run cancels a healthy job. The
controller knows every job that has not ended minutes ago, at every site; `sacct` is asked for older ones, if it is
there. What neither knows has no state, and nothing is done to it.

The classes are called as nemo-run's are: its file of job ids holds nothing but the name.
"""

from __future__ import annotations

import re
from typing import Any

import nemo_run
from invoke.runners import Result

from siri_megatron.nemo.accounting import COLUMNS, as_sacct

ASKS_SACCT = re.compile(r"sacct --parsable2 -j (\S+)")


class _AsksTheController:
    """Mixin of a tunnel."""

    def run(self, command: str, hide: bool = True, warn: bool = False, **options: Any) -> Any:
        asked = ASKS_SACCT.fullmatch(command)
        if asked is None:
            return super().run(command, hide=hide, warn=warn, **options)  # type: ignore[misc]
        told = super().run(f"scontrol show job --oneliner {asked[1]}", hide=True, warn=True)  # type: ignore[misc]
        if "JobId=" in told.stdout:
            return Result(stdout=as_sacct(told.stdout), command=command)
        said = super().run(command, hide=True, warn=True)  # type: ignore[misc]
        return Result(stdout=said.stdout if said.ok else f"{COLUMNS}\n", command=command)


class LocalTunnel(_AsksTheController, nemo_run.LocalTunnel):
    """Slurm's commands are on this machine."""


class SSHTunnel(_AsksTheController, nemo_run.SSHTunnel):
    """Slurm's commands are on the machine that ssh leads to."""
