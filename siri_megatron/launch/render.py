"""Job scripts: (job, what is known of the place) in, bash out. Pure; golden-tested, and the text is made to be read."""

from __future__ import annotations

import shlex
from pathlib import Path

from siri_megatron.config import signal_lead_s
from siri_megatron.launch.job import FIRST_PORT, PORTS, Job
from siri_megatron.launch.placement import gpus_per_node
from siri_megatron.launch.verdict import EXIT_CODES, TRY_AGAIN

NOTICE = "USR1"
BROKEN_OFF = 128 + 10  # what bash's `wait` says when USR1 arrives
AWAIT_NODES = """\
wait "$head"
status=$?
while ((told)) || kill -0 "$head" 2>/dev/null; do # broken off: by the trap, or as the head was stopped (SIGSTOP)
    ((told)) || sleep 0.5
    told=0
    wait "$head"
    status=$?
done
wait
while [[ $(jobs -p) ]]; do # an agent was stopped
    sleep 0.5
    wait
done
exit "$status"
"""


def sbatch_script(job: Job) -> str:
    """For `sbatch`: one allocation, one step with one task a node, notice, requeue."""
    parts = [_header(job), *map(str, _directives(job)), "", "set -uo pipefail", *command_lines(job), run_line(job),
             *_sweep(job)]
    if setup := job.config.launch.slurm.setup:
        parts += ["", *setup]
    if job.nodes > 1:
        parts += ["", *head_lines("command+=(--head {})")]
    element = '"--array=$SLURM_ARRAY_TASK_ID" ' if len(job.runs) > 1 else ""
    script = shlex.quote(str(job.files / "job.sh"))
    return "\n".join([*parts, "", *_step(job), "", *requeue_lines(job, f"{element}{script}"), 'exit "$status"', ""])


def local_script(job: Job, port: int) -> str:
    """For bash on this machine: every node is a process here."""
    parts = ["#!/usr/bin/env bash", f"# {job.config.name}: {_nodes(job)} on this machine, by `siri launch local`.",
             "set -uo pipefail", f"cd {shlex.quote(str(job.place.directory))} || exit", *command_lines(job)]
    if job.nodes == 1:
        return "\n".join([*parts, "", 'exec "${command[@]}"', ""])
    return "\n".join([*parts, "", f"command+=(--head 127.0.0.1:{port})", run_line(job), 'mkdir -p "$run/logs"',
                      "# In groups of their own: Ctrl-C comes to this script alone, and from here to each once.",
                      "set -m", "told=0", "trap 'told=1; kill -TERM $(jobs -p)' INT TERM",
                      f"for ((node = 1; node < {job.nodes}; node++)); do",
                      '    "${command[@]}" --node "$node" >>"$run/logs/node-$node.log" 2>&1 &', "done",
                      '"${command[@]}" --node 0 &', "head=$!", AWAIT_NODES])


def _header(job: Job) -> str:
    runs = f", {len(job.runs)} runs" if len(job.runs) > 1 else ""
    return (f"#!/usr/bin/env bash\n# {job.config.name}: {_nodes(job)}{runs}. Rendered by `siri launch slurm` from the "
            "launch section of its config.")


def _nodes(job: Job) -> str:
    return f"{job.nodes} node{'s' if job.nodes > 1 else ''}"


def _directives(job: Job) -> list[str]:
    slurm, gpus = job.config.launch.slurm, gpus_per_node(job.config)
    several = len(job.runs) > 1
    options = [f"--job-name={job.config.name}", f"--nodes={job.nodes}", "--ntasks-per-node=1",
               f"--time={slurm.time_limit}", f"--chdir={job.place.directory}", f"--output={_log(job)}",
               "--open-mode=append", "--requeue", f"--signal=B:{NOTICE}@{signal_lead_s(job.config):.0f}"]
    options += [f"--{name}={value}" for name, value in (
        ("partition", slurm.partition), ("account", slurm.account), ("qos", slurm.qos),
        ("gpus-per-node", gpus), ("cpus-per-task", slurm.cpus_per_node)) if value]
    options += ["--exclusive", "--mem=0"] if slurm.exclusive else []
    options += [f"--array=0-{len(job.runs) - 1}"] if several else []
    options += ["--dependency=singleton"] if slurm.chain > 1 else []
    return [f"#SBATCH {option}" for option in [*map(shlex.quote, options), *slurm.directives]]


def _log(job: Job) -> Path:
    log = job.config.launch.slurm.log
    return job.root / (log.replace("%j", "%A_%a") if len(job.runs) > 1 else log)


def command_lines(job: Job) -> list[str]:
    """The supervisor's environment, and its argv in the array `command`."""
    lines = ["", *(f"export {name}={shlex.quote(value)}" for name, value in job.env.items())]
    python, *rest = job.argv
    return [*lines, f"command=({shlex.quote(python)} {shlex.join(rest)})"]


def run_line(job: Job) -> str:
    return f"run={shlex.quote(str(job.root))}"


def _sweep(job: Job) -> list[str]:
    """Which run of the sweep this element of the array is."""
    if len(job.runs) == 1:
        return []
    cases = [f"{number}) run={shlex.quote(str(one.root))} command+=({shlex.join(one.overrides)}) ;;"
             for number, one in enumerate(job.runs)]
    return ["", 'case "$SLURM_ARRAY_TASK_ID" in', *(f"    {case}" for case in cases), "esac"]


def head_lines(then: str) -> list[str]:
    """Where node 0 listens; `then` says what to do with it, e.g. `command+=(--head {})`."""
    return ["# The first node leads; the others reach it at this address. Jobs that share a node differ in the port.",
            'first=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)',
            "address=$(scontrol show node \"$first\" | grep -o 'NodeAddr=[^ ]*' | cut -d= -f2)",
            then.format(f'"$address:$(({FIRST_PORT} + SLURM_JOB_ID % {PORTS}))"')]


def _step(job: Job) -> list[str]:
    slurm = job.config.launch.slurm
    options = [f"--nodes={job.nodes}", "--ntasks-per-node=1", "--cpu-bind=none", "--wait=0", "--kill-on-bad-exit=0"]
    options += [f"--cpus-per-task={slurm.cpus_per_node}"] if slurm.cpus_per_node else []
    if slurm.container_image:
        options += [f"--container-image={slurm.container_image}", f"--container-workdir={job.place.directory}"]
        options += [f"--container-mounts={','.join(slurm.mounts)}"] if slurm.mounts else []
    task = "bash -c 'exec \"$@\" --node \"$SLURM_NODEID\"' siri " if job.nodes > 1 else ""
    return [
        f"# Slurm gives notice {signal_lead_s(job.config):.0f} s before the time limit. The supervisor sees this file, "
        "and the learners commit.",
        *notice_lines(), "",
        f"# One task a node{': node 0 leads, the others serve it' if job.nodes > 1 else ''}. In the background, or the "
        "trap would wait for it.",
        f"srun {shlex.join(options)} \\", f'    {task}"${{command[@]}}" &', *wait_lines()]


def notice_lines() -> list[str]:
    """Slurm's notice becomes the file that the supervisor looks for."""
    return ["noticed=0", f"trap 'noticed=1; date >\"$run/interrupt\"' {NOTICE}"]


def wait_lines() -> list[str]:
    """Wait for the background job just started, through notices; leaves its exit status in `status`."""
    return ["step=$!", f"status={BROKEN_OFF} # what `wait` says when the trap breaks it off",
            f"while ((status == {BROKEN_OFF})); do", '    wait "$step"', "    status=$?", "done"]


def requeue_lines(job: Job, script: str, resubmitted: str = "${1:-0}") -> list[str]:
    """After `status`: go on in another job, where that helps. script: what to submit where requeues are forbidden."""
    interrupted, again = EXIT_CODES["interrupted"], TRY_AGAIN
    return [
        f"# {interrupted}: stopped after the notice; {again}: a node was lost. Both go on from the last commit.",
        f"restarts=$((${{SLURM_RESTART_COUNT:-0}} + {resubmitted}))",
        f"if ((status == {again} || (status == {interrupted} && noticed))); then",
        f"    if ((restarts < {job.config.launch.slurm.retries})); then",
        '        echo "job $SLURM_JOB_ID ended with $status; requeue $((restarts + 1))"',
        "        # Pending, or not a word (scontrol was killed, as this script will be): Slurm puts the job back",
        "        # itself, for a lost node. Where a site forbids requeues, the same script is submitted again.",
        '        said=$(scontrol requeue "$SLURM_JOB_ID" 2>&1) ||',
        '            { echo "$said"; [[ ! $said || $said == *pending* ]]; } ||',
        f'            sbatch {script} $((restarts + 1)) | tee -a "$run/launch/resubmitted"',
        "    else",
        '        echo "job $SLURM_JOB_ID ended with $status after $restarts requeues: none is left"', "    fi", "fi"]
