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

from siri_megatron.launch.slurm import FIELDS

ASKS_SACCT = re.compile(r"sacct --parsable2 -j (\S+)")
COLUMNS = "JobID|JobName|Partition|Account|AllocCPUS|State|ExitCode"
STATES = {"COMPLETING": "RUNNING", "CONFIGURING": "PENDING", "STAGE_OUT": "RUNNING", "SIGNALING": "RUNNING",
          "STOPPED": "SUSPENDED", "REQUEUE_HOLD": "PENDING", "REQUEUE_FED": "PENDING", "SPECIAL_EXIT": "PENDING",
          "RESV_DEL_HOLD": "PENDING"}
"""States of the controller for which sacct has another name (nemo-run refuses a name that it does not know)."""


def as_sacct(line: str) -> str:
    """A line of `scontrol show job --oneliner` as sacct's row."""
    fields: dict[str, str] = dict(FIELDS.findall(line))
    state = STATES.get(fields["JobState"], fields["JobState"])
    return "|".join((fields["JobId"], fields["JobName"], fields.get("Partition", ""), fields.get("Account", ""),
                     fields.get("NumCPUs", ""), state, fields.get("ExitCode", "")))


class _AsksTheController:
    """Mixin of a tunnel."""

    def run(self, command: str, hide: bool = True, warn: bool = False, **options: Any) -> Any:
        asked = ASKS_SACCT.fullmatch(command)
        if asked is None:
            return super().run(command, hide=hide, warn=warn, **options)  # type: ignore[misc]
        told = super().run(f"scontrol show job --oneliner {asked[1]}", hide=True, warn=True)  # type: ignore[misc]
        rows = [as_sacct(line) for line in told.stdout.splitlines() if line.startswith("JobId=")]
        if rows:
            return Result(stdout="\n".join([COLUMNS, *rows]) + "\n", command=command)
        said = super().run(command, hide=True, warn=True)  # type: ignore[misc]
        return Result(stdout=said.stdout if said.ok else f"{COLUMNS}\n", command=command)


class LocalTunnel(_AsksTheController, nemo_run.LocalTunnel):
    """Slurm's commands are on this machine."""


class SSHTunnel(_AsksTheController, nemo_run.SSHTunnel):
    """Slurm's commands are on the machine that ssh leads to."""
