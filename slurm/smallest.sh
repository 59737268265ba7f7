#!/usr/bin/env bash
# siri launch slurm configs/tiny.yaml launch.slurm.exclusive=false launch.slurm.cpus_per_node=4 launch.slurm.time_limit=0:30:00 --dry-run
# tiny: 1 node. Rendered by `siri launch slurm` from the launch section of its config.
#SBATCH --job-name=tiny
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --time=0:30:00
#SBATCH --chdir=/path/to/siri-megatron
#SBATCH --output=/path/to/siri-megatron/runs/tiny/launch/%j.log
#SBATCH --open-mode=append
#SBATCH --requeue
#SBATCH --signal=B:USR1@740
#SBATCH --cpus-per-task=4

set -uo pipefail

export PYTHONUNBUFFERED=1
command=(/path/to/siri-megatron/.venv/bin/python -m siri_megatron.cli train /path/to/siri-megatron/runs/tiny/launch/config.yaml --resume)
run=/path/to/siri-megatron/runs/tiny

# Slurm gives notice 740 s before the time limit. The supervisor sees this file, and the learners commit.
noticed=0
trap 'noticed=1; date >"$run/interrupt"' USR1

# One task a node. In the background, or the trap would wait for it.
srun --nodes=1 --ntasks-per-node=1 --cpu-bind=none --wait=0 --kill-on-bad-exit=0 --cpus-per-task=4 \
    "${command[@]}" &
step=$!
status=138 # what `wait` says when the trap breaks it off
while ((status == 138)); do
    wait "$step"
    status=$?
done

# 130: stopped after the notice; 75: a node was lost. Both go on from the last commit.
restarts=$((${SLURM_RESTART_COUNT:-0} + ${1:-0}))
if ((status == 75 || (status == 130 && noticed))); then
    if ((restarts < 8)); then
        echo "job $SLURM_JOB_ID ended with $status; requeue $((restarts + 1))"
        # Pending, or not a word (scontrol was killed, as this script will be): Slurm puts the job back
        # itself, for a lost node. Where a site forbids requeues, the same script is submitted again.
        said=$(scontrol requeue "$SLURM_JOB_ID" 2>&1) ||
            { echo "$said"; [[ ! $said || $said == *pending* ]]; } ||
            sbatch /path/to/siri-megatron/runs/tiny/launch/job.sh $((restarts + 1)) | tee -a "$run/launch/resubmitted"
    else
        echo "job $SLURM_JOB_ID ended with $status after $restarts requeues: none is left"
    fi
fi
exit "$status"
