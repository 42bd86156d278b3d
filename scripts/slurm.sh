#!/usr/bin/env bash
# A run on the machines of a SLURM job, which stops in order before its time is over and queues itself again:
#
#     sbatch [--nodes=2 ...] scripts/slurm.sh --config configs/wf42m_r100_pfc02.yaml optim.lr=0.2 output=/shared/runs/a
#
# Submit it in the repository's folder. Repository, data and `output` lie where every machine sees them under the same
# path. Options of sbatch's command line replace those below; docs/reliability.md explains what happens when.
#
#SBATCH --job-name=facemill
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=64
#SBATCH --time=24:00:00
#SBATCH --signal=B:USR1@300
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=facemill-%j.log
#
# --ntasks-per-node=1   one torchrun a machine; it starts a process a GPU.
# --signal=B:USR1@300   five minutes before the end of --time this script gets SIGUSR1. Within them the current step has
#                       to end and a checkpoint to be written; give more to slow disks, and lengthen `grace` with it.
# --requeue             the job goes back into the queue also when it is preempted or a machine fails.
# --open-mode=append    what it prints after that goes to the end of the same file.
#
# Machines with several networks: name the one that the ranks shall use, before sbatch, which hands the environment on:
#
#     export NCCL_SOCKET_IFNAME=ib0 GLOO_SOCKET_IFNAME=ib0
set -euo pipefail

export PATH="$PATH:$PWD/.venv/bin" # an environment that is active comes first
grace=240 # seconds that torchrun waits for its ranks to save, 30 by default; then it kills them
head=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
export TORCH_ELASTIC_SHUTDOWN_TIMEOUT=$grace

# The port and the id are the job's own, so that two jobs that share a machine do not meet. torchrun takes SIGUSR1 only
# where it is told to, and hands it on to the ranks. A rank that dies is started again, three times, with all others.
# Where torchrun itself ends on one machine, srun ends the others, which may be waiting for a network that is gone; after
# a signal there is nothing left to save by then.
srun --kill-on-bad-exit=1 torchrun \
    --nnodes="$SLURM_NNODES" --nproc-per-node="${SLURM_GPUS_ON_NODE:-1}" --max-restarts=3 \
    --rdzv-backend=c10d --rdzv-endpoint="$head:$((20000 + SLURM_JOB_ID % 10000))" \
    --rdzv-id="$SLURM_JOB_ID.${SLURM_RESTART_COUNT:-0}" \
    --signals-to-handle=SIGTERM,SIGINT,SIGHUP,SIGQUIT,SIGUSR1,SIGUSR2 \
    train/run.py "$@" &
step=$!

# srun is in the background because bash answers no signal before a command in the foreground ends. srun hands SIGUSR1
# on to every machine; SIGTERM it must not get, at that it kills them all.
stopped=
trap 'stopped=yes; kill -USR1 "$step" || true' USR1

code=0
wait "$step" || code=$?
while kill -0 "$step" 2>/dev/null; do # a trap ended the wait, not srun
    code=0
    wait "$step" || code=$?
done
if [[ $stopped && $code -ne 0 ]]; then
    scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"
