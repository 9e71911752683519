#!/usr/bin/env bash
# Starts the processes of this machine for a job on one machine or several:
#
#   tools/launch.sh train.py DATASET_DIR --model DaViT_tiny ...
#
# The job is described by the environment:
#   NPROC_PER_NODE  processes on this machine; must equal the GPUs that CUDA_VISIBLE_DEVICES shows (default: that many)
#   N_NODES         machines (default 1)
#   NODE_RANK       number of this machine, 0 to N_NODES - 1 (default 0)
#   MASTER_ADDR     address of machine 0 (default 127.0.0.1; needed when N_NODES > 1)
#   MASTER_PORT     a free port there (default 29500)
#   MAX_RESTARTS    how often a dead process brings the job back, from its newest state (default 0)
set -euo pipefail

fail() { echo "launch.sh: $*" >&2; exit 2; }

[ $# -ge 1 ] || fail "no script given; usage: tools/launch.sh train.py DATASET_DIR --model DaViT_tiny ..."
N_NODES=${N_NODES:-1}
NODE_RANK=${NODE_RANK:-0}
MASTER_PORT=${MASTER_PORT:-29500}
for name in N_NODES NODE_RANK MASTER_PORT NPROC_PER_NODE MAX_RESTARTS; do
  value=${!name:-0}
  case $value in *[!0-9]* | '') fail "$name='$value' is not a whole number" ;; esac
done
[ "$N_NODES" -ge 1 ] || fail "N_NODES=$N_NODES must be 1 or more"
[ "$NODE_RANK" -lt "$N_NODES" ] || fail "NODE_RANK=$NODE_RANK must be from 0 to $((N_NODES - 1)), as N_NODES=$N_NODES"
[ "$N_NODES" -eq 1 ] || [ -n "${MASTER_ADDR:-}" ] || fail "MASTER_ADDR is not set, and N_NODES=$N_NODES machines must find machine 0"

if [ -n "${CUDA_VISIBLE_DEVICES:-}" ]; then
  gpus=$(awk -F, '{print NF}' <<<"$CUDA_VISIBLE_DEVICES")
  NPROC_PER_NODE=${NPROC_PER_NODE:-$gpus}
  [ "$NPROC_PER_NODE" -eq "$gpus" ] || fail "NPROC_PER_NODE=$NPROC_PER_NODE, but CUDA_VISIBLE_DEVICES=$CUDA_VISIBLE_DEVICES shows $gpus GPUs; they must be equal"
fi

exec "${PYTHON:-python3}" -u -m torch.distributed.run --nnodes="$N_NODES" --node_rank="$NODE_RANK" \
  --nproc_per_node="${NPROC_PER_NODE:-1}" --master_addr="${MASTER_ADDR:-127.0.0.1}" --master_port="$MASTER_PORT" \
  --max-restarts="${MAX_RESTARTS:-0}" "$@"
