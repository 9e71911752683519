#!/usr/bin/env bash
# What slurm_train.sh and slurm_test.sh of mmdet/tools and mmseg/tools have in common:
#
#   slurm.sh SCRIPT PARTITION JOB_NAME WORD ... [ARGUMENT ...]
#
# Environment, with the ecosystem's names: GPUS (8), GPUS_PER_NODE (8), CPUS_PER_TASK (5), SRUN_ARGS, PORT (29500).
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
script=$1
shift
if [ $# -lt 4 ]; then
  echo "usage: [GPUS=8] bash ${SLURM_NAME:-slurm.sh} PARTITION JOB_NAME CONFIG WORK_DIR|CHECKPOINT [ARGUMENT ...]" >&2
  exit 2
fi
partition=$1 name=$2
shift 2
GPUS=${GPUS:-8}
GPUS_PER_NODE=${GPUS_PER_NODE:-$((GPUS < 8 ? GPUS : 8))}
export PYTHONPATH="$root${PYTHONPATH:+:$PYTHONPATH}" MASTER_PORT=${PORT:-29500}
# shellcheck disable=SC2086  # SRUN_ARGS is several words
exec srun -p "$partition" --job-name="$name" --gres="gpu:$GPUS_PER_NODE" --ntasks="$GPUS" \
  --ntasks-per-node="$GPUS_PER_NODE" --cpus-per-task="${CPUS_PER_TASK:-5}" --kill-on-bad-exit=1 ${SRUN_ARGS:-} \
  "${PYTHON:-python3}" -u "$script" "$@" --launcher slurm
