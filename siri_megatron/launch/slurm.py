"""Talking to Slurm through its own commands: submit, look, cancel. Every call has a time-out."""

from __future__ import annotations

import re
import shutil
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from siri_megatron.errors import ConfigError, RunFailed

CALL_S = 60.0
CANCEL_S = 90.0
FORGOTTEN = re.compile("Invalid job id|not found")
FIELDS = re.compile(r"(?:^|\s)(\w[\w:/]*)=(\S*)")


@dataclass(frozen=True)
class JobState:
    """One job (or element of an array), as scontrol tells of it."""

    job_id: str
    state: str
    exit_code: str
    restarts: int
    nodes: str
    reason: str
    run_time: str

    @property
    def ended(self) -> bool:
        return self.state not in ("PENDING", "RUNNING", "COMPLETING", "CONFIGURING", "SUSPENDED", "REQUEUED",
                                  "REQUEUE_HOLD", "RESIZING", "SIGNALING", "STAGE_OUT", "STOPPED")

    def sentence(self) -> str:
        restarts = f", {self.restarts} requeues" if self.restarts else ""
        where = f" on {self.nodes}" if self.nodes not in ("", "(null)") else ""
        why = f" ({self.reason})" if self.reason not in ("", "None") else ""
        code = f", exit status {self.exit_code.partition(':')[0]}" if self.ended else ""
        return f"job {self.job_id}: {self.state}{where}{why}, {self.run_time}{restarts}{code}"


def submit(script: Path) -> str:
    """Submit a script; returns the id of its job.

    Raises:
        ConfigError: there is no sbatch here.
        RunFailed: Slurm refuses; with what it says.
    """
    return _call("sbatch", "--parsable", str(script)).partition(";")[0].strip()


def states(job_ids: Sequence[str]) -> list[JobState]:
    """Of these jobs, an entry for each element of an array; those that Slurm has forgotten are left out.

    Raises:
        RunFailed: its controller does not answer.
    """
    found = []
    for job_id in job_ids:
        try:
            said = _call("scontrol", "show", "job", "--oneliner", job_id)
        except RunFailed as error:
            if not FORGOTTEN.search(error.what):
                raise
            continue
        found += [parse_state(line) for line in said.splitlines() if line.startswith("JobId=")]
    return found


def parse_state(line: str) -> JobState:
    """A line of `scontrol show job --oneliner`."""
    fields = dict(FIELDS.findall(line))
    element = fields.get("ArrayTaskId", "")
    name = f"{fields['ArrayJobId']}_{element}" if element else fields["JobId"]
    return JobState(name, fields["JobState"], fields.get("ExitCode", ""), int(fields.get("Restarts", "0")),
                    fields.get("NodeList", ""), fields.get("Reason", ""), fields.get("RunTime", ""))


def cancel(job_ids: Sequence[str]) -> None:
    """Cancel jobs and wait until nothing of them runs.

    Raises:
        RunFailed: some still run after CANCEL_S.
    """
    _call("scancel", *job_ids)
    deadline = time.monotonic() + CANCEL_S
    while living := _call("squeue", "--noheader", "--format=%i %T", f"--jobs={','.join(job_ids)}", lenient=True):
        if time.monotonic() > deadline:
            raise RunFailed(f"still there {CANCEL_S:.0f} s after scancel: {living.splitlines()}",
                            rule="Slurm ends a cancelled job within its KillWait", fix="look at its nodes: sinfo")
        time.sleep(0.5)


def _call(*argv: str, lenient: bool = False) -> str:
    """What a command prints. lenient: empty where it fails (squeue fails for jobs that are forgotten)."""
    if not shutil.which(argv[0]):
        raise ConfigError(f"{argv[0]} is not on PATH", rule="jobs are submitted from a machine with Slurm's commands",
                          fix="log in to the cluster, or --dry-run to look at the script")
    try:
        done = subprocess.run(argv, capture_output=True, text=True, timeout=CALL_S, check=False)
    except subprocess.TimeoutExpired:
        raise RunFailed(f"{argv[0]} did not answer within {CALL_S:.0f} s", fix="is Slurm's controller up?") from None
    if done.returncode and not lenient:
        raise RunFailed(f"{' '.join(argv)}: {done.stderr.strip()}", rule="Slurm does as it is told",
                        fix="correct the launch.slurm section; is Slurm's controller up?")
    return "" if done.returncode else done.stdout.strip()
