#!/usr/bin/env bash
# Stages on several nodes, in one Ray cluster that lives as long as the Slurm job. From the checkout, on a shared disk:
#   sbatch [--nodes=N --partition=NAME ...] cluster/slurm/multi_node.sh STAGE RUNFILE [key=value ...]
# Ten minutes before the time limit, and on preemption where Slurm gives notice, the step that is going on is committed
# and the job put back into the queue, where the same command goes on from the commit.
# To stop it for good: scancel --signal=TERM --batch JOBID
#SBATCH --job-name=raydpo
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --exclusive
#SBATCH --gpus-per-node=8
#SBATCH --mem=0
#SBATCH --time=24:00:00
#SBATCH --signal=B:USR1@600
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=raydpo-%j.log
set -euo pipefail
umask 077 # the token below

if [[ $# -lt 2 ]]; then
  echo "usage: sbatch cluster/slurm/multi_node.sh STAGE RUNFILE [key=value ...]" >&2
  exit 2
fi

export PATH="$SLURM_SUBMIT_DIR/.venv/bin:$PATH"
state="$SLURM_SUBMIT_DIR/.raydpo-slurm-$SLURM_JOB_ID" # every node reads the token there
rm -rf "$state"
mkdir "$state"
trap 'rm -rf "$state"' EXIT

python -c 'import secrets; print(secrets.token_hex(32), end="")' >"$state/token"
export RAY_AUTH_MODE=token RAY_AUTH_TOKEN_PATH="$state/token"
export RAY_SYMMETRIC_RUN_CLUSTER_WAIT_TIMEOUT=300 # nodes read Python's packages from a shared disk at once
unset RAY_ADDRESS

# The batch script runs on the first node, which becomes the head. Its name would not do: it may lead to 127.0.1.1.
read -r host _ < <(hostname -I)
address="$host:6379"

# The driver's process is known by its file, because srun would signal Ray's processes too, and end the cluster first.
driver='echo $$ >"$0/driver"; exec env RAY_ADDRESS="$1" python -m raydpo "${@:2}"'
srun --kill-on-bad-exit=1 ray symmetric-run --address "$address" --min-nodes "$SLURM_JOB_NUM_NODES" \
  --num-cpus "$SLURM_CPUS_ON_NODE" --num-gpus "${SLURM_GPUS_ON_NODE:-0}" --disable-usage-stats \
  -- bash -c "$driver" "$state" "$address" "$@" &
step=$!

requeue=""
stop_driver() {
  if [[ -s $state/driver ]]; then
    kill -TERM "$(cat "$state/driver")" || true
  else
    kill -TERM "$step"
  fi
}
trap 'requeue=yes; stop_driver' USR1
trap 'requeue=""; stop_driver' TERM

while kill -0 "$step" 2>/dev/null; do
  wait "$step" || true # a signal ends it early
done
code=0
wait "$step" || code=$?

if [[ $code -eq 0 && ! -s $state/driver ]]; then
  echo "Ray did not start on $address; symmetric-run has printed why." >&2
  code=1 # symmetric-run itself says 0
fi
if [[ $code -ne 0 && -n $requeue ]]; then
  scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"
