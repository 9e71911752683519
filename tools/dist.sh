#!/usr/bin/env bash
# What dist_train.sh and dist_test.sh of mmdet/tools and mmseg/tools have in common:
#
#   dist.sh SCRIPT N WORD_1 ... WORD_N PROCESSES [ARGUMENT ...]
#
# starts SCRIPT WORD_1 ... WORD_N --launcher pytorch ARGUMENT ... in so many processes. Several machines: NNODES,
# NODE_RANK, MASTER_ADDR and PORT in the environment. Without a GPU the processes run on the CPU.
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
script=$1 words=$2
shift 2
if [ $# -le "$words" ] || [[ ! ${*:words+1:1} =~ ^[1-9][0-9]*$ ]]; then
  names=CONFIG
  [ "$words" -eq 1 ] || names="CONFIG CHECKPOINT"
  echo "usage: bash ${DIST_NAME:-dist.sh} $names PROCESSES [ARGUMENT ...]; PROCESSES is '${*:words+1:1}'" >&2
  exit 2
fi
export N_NODES=${NNODES:-1} NODE_RANK=${NODE_RANK:-0} MASTER_PORT=${PORT:-29500} NPROC_PER_NODE=${*:words+1:1}
export PYTHONPATH="$root${PYTHONPATH:+:$PYTHONPATH}"
exec "$root/tools/launch.sh" "$script" "${@:1:words}" --launcher pytorch "${@:words+2}"
