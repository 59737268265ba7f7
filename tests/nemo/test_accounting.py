"""The controller's words as sacct's."""

from __future__ import annotations

import csv

import pytest

from siri_megatron.nemo.accounting import COLUMNS, as_sacct

LINE = ("JobId=12 JobName=siri.tiny UserId=u(0) Account=(null) QOS=(null) JobState={state} Reason=None ExitCode=3:0 "
        "Partition=batch NodeList=n[1-2] NumNodes=2 NumCPUs=32 NumTasks=2\n")


@pytest.mark.parametrize(("state", "wanted"), [("RUNNING", "RUNNING"), ("FAILED", "FAILED"), ("TIMEOUT", "TIMEOUT"),
                                               ("COMPLETING", "RUNNING"), ("REQUEUE_HOLD", "PENDING")])
def test_a_row_has_what_nemo_run_reads(state: str, wanted: str) -> None:
    (row,) = csv.DictReader(as_sacct(LINE.format(state=state)).split(), delimiter="|")
    assert (row["JobID"], row["JobName"], row["State"], row["ExitCode"]) == ("12", "siri.tiny", wanted, "3:0")


def test_a_job_that_is_forgotten_has_no_row() -> None:
    assert as_sacct("slurm_load_jobs error: Invalid job id specified\n") == f"{COLUMNS}\n"
