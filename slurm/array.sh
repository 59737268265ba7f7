#!/usr/bin/env bash
# siri launch slurm configs/r1-distill-1.5b.yaml 'launch.slurm.sweep={seed: [1, 2, 3], budget.schedule: [cosine, constant]}' --dry-run
# r1-distill-1.5b: 1 node, 6 runs. Rendered by `siri launch slurm` from the launch section of its config.
#SBATCH --job-name=r1-distill-1.5b
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --time=1-00:00:00
#SBATCH --chdir=/path/to/siri-megatron
#SBATCH --output=/path/to/siri-megatron/runs/r1-distill-1.5b/launch/%A_%a.log
#SBATCH --open-mode=append
#SBATCH --requeue
#SBATCH --signal=B:USR1@740
#SBATCH --gpus-per-node=8
#SBATCH --exclusive
#SBATCH --mem=0
#SBATCH --array=0-5

set -uo pipefail

export PYTHONUNBUFFERED=1
command=(/path/to/siri-megatron/.venv/bin/python -m siri_megatron.cli train /path/to/siri-megatron/runs/r1-distill-1.5b/launch/config.yaml --resume)
run=/path/to/siri-megatron/runs/r1-distill-1.5b

case "$SLURM_ARRAY_TASK_ID" in
    0) run=/path/to/siri-megatron/runs/r1-distill-1.5b-seed1-schedulecosine command+=(name=r1-distill-1.5b-seed1-schedulecosine seed=1 budget.schedule=cosine) ;;
    1) run=/path/to/siri-megatron/runs/r1-distill-1.5b-seed1-scheduleconstant command+=(name=r1-distill-1.5b-seed1-scheduleconstant seed=1 budget.schedule=constant) ;;
    2) run=/path/to/siri-megatron/runs/r1-distill-1.5b-seed2-schedulecosine command+=(name=r1-distill-1.5b-seed2-schedulecosine seed=2 budget.schedule=cosine) ;;
    3) run=/path/to/siri-megatron/runs/r1-distill-1.5b-seed2-scheduleconstant command+=(name=r1-distill-1.5b-seed2-scheduleconstant seed=2 budget.schedule=constant) ;;
    4) run=/path/to/siri-megatron/runs/r1-distill-1.5b-seed3-schedulecosine command+=(name=r1-distill-1.5b-seed3-schedulecosine seed=3 budget.schedule=cosine) ;;
    5) run=/path/to/siri-megatron/runs/r1-distill-1.5b-seed3-scheduleconstant command+=(name=r1-distill-1.5b-seed3-scheduleconstant seed=3 budget.schedule=constant) ;;
esac

# Slurm gives notice 740 s before the time limit. The supervisor sees this file, and the learners commit.
noticed=0
trap 'noticed=1; date >"$run/interrupt"' USR1

# One task a node. In the background, or the trap would wait for it.
srun --nodes=1 --ntasks-per-node=1 --cpu-bind=none --wait=0 --kill-on-bad-exit=0 \
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
            sbatch "--array=$SLURM_ARRAY_TASK_ID" /path/to/siri-megatron/runs/r1-distill-1.5b/launch/job.sh $((restarts + 1)) | tee -a "$run/launch/resubmitted"
    else
        echo "job $SLURM_JOB_ID ended with $status after $restarts requeues: none is left"
    fi
fi
exit "$status"
