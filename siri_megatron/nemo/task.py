"""One job of an experiment, and the bash that nemo-run starts for it. Pure; knows nothing of nemo-run.

Invariants:

- one_command: a run starts under the argv and environment that `siri launch` would start it under.
- carries_its_config: a run's script writes the resolved config where its command looks for it, so that nothing but text
  has to reach the cluster.
- nothing_in_vain: on this machine a task whose predecessor failed does not start; nemo-run itself would start it.
  (On a cluster Slurm sees to that.)
- notice: Slurm's notice reaches the supervisor although nemo-run's script waits for `srun` in the foreground: in that
  script `srun` is a function, which waits in the background.
- no_terminal: logs of jobs are lines, not a display that is drawn over and over.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from siri_megatron.config import as_yaml
from siri_megatron.launch.job import Job
from siri_megatron.launch.render import (
    command_lines,
    head_lines,
    local_script,
    notice_lines,
    requeue_lines,
    run_line,
    wait_lines,
)

CONFIG_ENDS = "END_OF_CONFIG"
# nemo-run's own script lies in a spool directory; Slurm knows the path that was submitted.
SUBMITTED = '"$(scontrol show job "$SLURM_JOB_ID" | sed -n "s/^ *Command=//p")"'
# nemo-run's script asks `srun` for unbuffered output. That is a terminal, on which progress is drawn over and over.
PLAIN_OUTPUT = "unset SLURM_UNBUFFEREDIO"


@dataclass(frozen=True)
class Task:
    """A command on the nodes of a job.

    Attributes:
        name: unique within the experiment.
        job: the run, or the run whose place, environment and Slurm options the command has.
        argv: another command than the run itself, on one node.
        needs: names of tasks before it.
        after: start once those have succeeded, or merely ended.
    """

    name: str
    job: Job
    argv: tuple[str, ...] = ()
    needs: tuple[str, ...] = ()
    after: Literal["success", "end"] = "success"

    @property
    def nodes(self) -> int:
        return 1 if self.argv else self.job.nodes

    @property
    def trains(self) -> bool:
        return not self.argv


def local_text(task: Task, port: int, stamps: Path) -> str:
    """For bash on this machine. port: of the head, where every node is a process here. stamps: directory in which
    tasks leave their exit status."""
    start = [*config_lines(task.job), local_script(task.job, port)] if task.trains else other_command(task)
    waits = [f'[[ $(cat {stamp(stamps, name)} 2>/dev/null) == 0 ]] || '
             f'{{ echo "{task.name}: not started, for {name} did not succeed" >&2; exit 2; }}' for name in task.needs]
    mine = stamp(stamps, task.name)
    return "\n".join([f"mkdir -p {shlex.quote(str(stamps))}", f"rm -f {mine}",
                      "trap : TERM INT # the command has the signal too, and takes its time to commit",
                      *(waits if task.after == "success" else ()), "(", *start, ")", "status=$?",
                      f'echo "$status" >{mine}', 'exit "$status"', ""])


def slurm_text(task: Task) -> str:
    """For `bash` as the one task of a node; `slurm_setup` has made ready what it needs."""
    if not task.trains:
        return "\n".join([*other_command(task), ""])
    several = ['command+=(--head "$SIRI_HEAD" --node "$SLURM_NODEID")'] if task.nodes > 1 else []
    return "\n".join([f"cd {shlex.quote(str(task.job.place.directory))} || exit", *command_lines(task.job), *several,
                      'exec "${command[@]}"', ""])


def slurm_setup(task: Task) -> str:
    """What nemo-run's script does once, on the first node, before its `srun`."""
    setup = task.job.config.launch.slurm.setup
    if not task.trains:
        return "\n".join(["set +vx", PLAIN_OUTPUT, files_line(task.job), *setup])
    head = ["", *head_lines("export SIRI_HEAD={}")] if task.nodes > 1 else []
    inner = ['command srun "$@" &', *wait_lines(), *requeue_lines(task.job, SUBMITTED, "resubmitted"),
             'return "$status"']
    return "\n".join(["set +vx", PLAIN_OUTPUT, run_line(task.job), *config_lines(task.job), *setup, *head, "",
                      *notice_lines(), "resubmitted=${1:-0}",
                      "# In the background, or the trap would wait for it.", "srun() {",
                      *(f"    {line}" for line in inner), f"}}{_into_log(task)}"])


def _into_log(task: Task) -> str:
    """What `srun` and the requeue say goes into the run's log; nemo-run's script has one of its own for that.

    Where its name has patterns that only Slurm can fill in, it stays there.
    """
    parts = str(log_of(task)).split("%j")
    return "" if "%" in "".join(parts) else " >>" + '"$SLURM_JOB_ID"'.join(map(shlex.quote, parts)) + " 2>&1"


def log_of(task: Task) -> Path:
    """The run's own log where `siri launch` has it, in Slurm's patterns; that of another command beside it."""
    log = task.job.root / task.job.config.launch.slurm.log
    return log if task.trains else log.with_name(f"{task.name}-{log.name}")


def config_lines(job: Job) -> list[str]:
    """The resolved config, written where the command of the job reads it (a restart writes the same again)."""
    text = as_yaml(job.config)
    path = shlex.quote(str(job.config_file))
    return [files_line(job), f"cat >{path}.new <<'{CONFIG_ENDS}'",
            *text.splitlines(), CONFIG_ENDS, f"mv {path}.new {path}"]


def files_line(job: Job) -> str:
    """The directory of config and log."""
    return f"mkdir -p {shlex.quote(str(job.files))}"


def other_command(task: Task) -> list[str]:
    return [f"cd {shlex.quote(str(task.job.place.directory))} || exit", *exports(task.job.env),
            f"exec {shlex.join(task.argv)}"]


def exports(env: Mapping[str, str]) -> list[str]:
    return [f"export {name}={shlex.quote(value)}" for name, value in env.items()]


def stamp(stamps: Path, name: str) -> str:
    return shlex.quote(str(stamps / f"{name}.status"))
