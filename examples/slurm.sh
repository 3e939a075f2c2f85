#!/bin/bash
# A run on several machines under Slurm: two nodes of eight GPUs here; change the two numbers for others.
#
#     sbatch examples/slurm.sh recipes/math-llama3-8b-lora.yaml --execution.sharding fsdp2
#
# The same job continues what an earlier one began: submit it again after a time limit, or let Slurm requeue it.
#SBATCH --job-name=dartune
#SBATCH --nodes=2
#SBATCH --gpus-per-node=8
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=64
#SBATCH --time=24:00:00
#SBATCH --requeue
set -euo pipefail

first=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
srun .venv/bin/torchrun \
    --nnodes "$SLURM_JOB_NUM_NODES" \
    --nproc-per-node "$SLURM_GPUS_ON_NODE" \
    --rdzv-id "$SLURM_JOB_ID" \
    --rdzv-backend c10d \
    --rdzv-endpoint "$first:29500" \
    -m dartune run "$@"
