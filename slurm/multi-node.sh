#!/usr/bin/env bash
# siri launch slurm configs/r1-distill-7b.yaml launch.interface=ib0 'launch.env={NCCL_IB_HCA: mlx5, NCCL_DEBUG: WARN}' launch.slurm.partition=gpu launch.slurm.account=project --dry-run
# r1-distill-7b: 2 nodes. Rendered by `siri launch slurm` from the launch section of its config.
#SBATCH --job-name=r1-distill-7b
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --time=1-00:00:00
#SBATCH --chdir=/path/to/siri-megatron
#SBATCH --output=/path/to/siri-megatron/runs/r1-distill-7b/launch/%j.log
#SBATCH --open-mode=append
#SBATCH --requeue
#SBATCH --signal=B:USR1@740
#SBATCH --partition=gpu
#SBATCH --account=project
#SBATCH --gpus-per-node=8
#SBATCH --exclusive
#SBATCH --mem=0

set -uo pipefail

export PYTHONUNBUFFERED=1
export NCCL_SOCKET_IFNAME=ib0
export NCCL_IB_HCA=mlx5
export NCCL_DEBUG=WARN
command=(/path/to/siri-megatron/.venv/bin/python -m siri_megatron.cli train /path/to/siri-megatron/runs/r1-distill-7b/launch/config.yaml --resume --nodes 2)
run=/path/to/siri-megatron/runs/r1-distill-7b

# The first node leads; the others reach it at this address. Jobs that share a node differ in the port.
first=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
address=$(scontrol show node "$first" | grep -o 'NodeAddr=[^ ]*' | cut -d= -f2)
command+=(--head "$address:$((20000 + SLURM_JOB_ID % 10000))")

# Slurm gives notice 740 s before the time limit. The supervisor sees this file, and the learners commit.
noticed=0
trap 'noticed=1; date >"$run/interrupt"' USR1

# One task a node: node 0 leads, the others serve it. In the background, or the trap would wait for it.
srun --nodes=2 --ntasks-per-node=1 --cpu-bind=none --wait=0 --kill-on-bad-exit=0 \
    bash -c 'exec "$@" --node "$SLURM_NODEID"' siri "${command[@]}" &
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
            sbatch /path/to/siri-megatron/runs/r1-distill-7b/launch/job.sh $((restarts + 1)) | tee -a "$run/launch/resubmitted"
    else
        echo "job $SLURM_JOB_ID ended with $status after $restarts requeues: none is left"
    fi
fi
exit "$status"
