#!/usr/bin/env bash
# Stages on one node, or a part of one: raydpo starts a Ray of its own there. From the checkout:
#   sbatch [--gpus=N --partition=NAME ...] cluster/slurm/single_node.sh STAGE RUNFILE [key=value ...]
# Ten minutes before the time limit, and on preemption where Slurm gives notice, the step that is going on is committed
# and the job put back into the queue, where the same command goes on from the commit.
# To stop it for good: scancel --signal=TERM --batch JOBID
#SBATCH --job-name=raydpo
#SBATCH --nodes=1
#SBATCH --ntasks=1
#SBATCH --cpus-per-task=16
#SBATCH --gpus=1
#SBATCH --mem=64G
#SBATCH --time=24:00:00
#SBATCH --signal=B:USR1@600
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=raydpo-%j.log
set -euo pipefail
umask 077 # the token below

if [[ $# -lt 2 ]]; then
  echo "usage: sbatch cluster/slurm/single_node.sh STAGE RUNFILE [key=value ...]" >&2
  exit 2
fi

export PATH="$SLURM_SUBMIT_DIR/.venv/bin:$PATH"
state="$(mktemp -d)"
trap 'rm -rf "$state"' EXIT

# Others may work on this node, and Ray listens on all its addresses.
python -c 'import secrets; print(secrets.token_hex(32), end="")' >"$state/token"
export RAY_AUTH_MODE=token RAY_AUTH_TOKEN_PATH="$state/token"
unset RAY_ADDRESS

# Without the number Ray would count the CPUs of the whole node.
python -m raydpo "$@" cluster.num_cpus="$SLURM_CPUS_PER_TASK" &
driver=$!

requeue=""
trap 'requeue=yes; kill -TERM "$driver" || true' USR1
trap 'requeue=""; kill -TERM "$driver" || true' TERM

while kill -0 "$driver" 2>/dev/null; do
  wait "$driver" || true # a signal ends it early
done
code=0
wait "$driver" || code=$?

if [[ $code -ne 0 && -n $requeue ]]; then
  scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"
