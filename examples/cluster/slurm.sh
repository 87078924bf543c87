#!/usr/bin/env bash
#SBATCH --job-name=train
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=2
#SBATCH --cpus-per-task=8
#SBATCH --time=24:00:00
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --signal=USR1@300
# Slurm sends SIGUSR1 to the ranks five minutes before the time limit. They write a checkpoint and end with code 138.
# The job is then queued again, and resumes. It also resumes if Slurm requeues it, for example after a node failed.
# Each rank finds its number in Slurm's variables; the run is named after the job.
srun --kill-on-bad-exit=1 host run train.toml --resume auto
code=$?
if [ "$code" = 138 ]; then
	scontrol requeue "$SLURM_JOB_ID"
	exit 0
fi
exit "$code"
