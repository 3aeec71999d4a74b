#!/usr/bin/env bash
# One run for each seed, on nodes of a SLURM cluster:   sbatch --array=0-4 examples/clusters/slurm-array.sh --env LunarLander-v3
# Two minutes before its time is up, or when it is preempted, a job is told; it saves, goes to the end of
# the queue, and goes on from there when it starts again.
#SBATCH --job-name=async_dqn
#SBATCH --cpus-per-task=16
#SBATCH --mem=16G
#SBATCH --time=04:00:00
#SBATCH --signal=B:TERM@120
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=runs/slurm-%A_%a.out
set -uo pipefail

python=${PYTHON:-.venv/bin/python}
seed=${SLURM_ARRAY_TASK_ID:-0}
$python launch.py --workers "${SLURM_CPUS_PER_TASK:-1}" --seed "$seed" --run-name "seed-$seed" --resume auto --quiet "$@" &
run=$!
trap 'kill -TERM $run' TERM
wait $run
code=$?
# A signal ends a wait at once; the run then saves.
while kill -0 $run 2>/dev/null; do
    wait $run
    code=$?
done
if [[ $code -eq 143 ]]; then
    scontrol requeue "${SLURM_ARRAY_JOB_ID:-$SLURM_JOB_ID}${SLURM_ARRAY_TASK_ID:+_$SLURM_ARRAY_TASK_ID}"
    exit 0
fi
exit $code
