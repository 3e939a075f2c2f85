#!/bin/bash
# Run dartune on several machines under Slurm. Set the numbers of nodes (2) and GPUs per node (8) below.
#
#     sbatch examples/slurm.sh recipes/math-llama3-8b-lora.yaml --execution.sharding fsdp2
#
# The same job resumes an earlier one: submit it again after a time limit, or let Slurm requeue it.
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
