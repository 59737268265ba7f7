"""What Slurm's controller says of a job, in the form of `sacct --parsable2`. Pure."""

from __future__ import annotations

from siri_megatron.launch.slurm import FIELDS

COLUMNS = "JobID|JobName|Partition|Account|AllocCPUS|State|ExitCode"
STATES = {"COMPLETING": "RUNNING", "CONFIGURING": "PENDING", "STAGE_OUT": "RUNNING", "SIGNALING": "RUNNING",
          "STOPPED": "SUSPENDED", "REQUEUE_HOLD": "PENDING", "REQUEUE_FED": "PENDING", "SPECIAL_EXIT": "PENDING",
          "RESV_DEL_HOLD": "PENDING"}
"""States of the controller for which sacct has another name (nemo-run fails on a name that it does not know)."""


def as_sacct(told: str) -> str:
    """Of `scontrol show job --oneliner`, sacct's table; without a row where the controller knows no such job."""
    rows = [_row(line) for line in told.splitlines() if line.startswith("JobId=")]
    return "\n".join([COLUMNS, *rows, ""])


def _row(line: str) -> str:
    fields: dict[str, str] = dict(FIELDS.findall(line))
    state = STATES.get(fields["JobState"], fields["JobState"])
    return "|".join((fields["JobId"], fields["JobName"], fields.get("Partition", ""), fields.get("Account", ""),
                     fields.get("NumCPUs", ""), state, fields.get("ExitCode", "")))
